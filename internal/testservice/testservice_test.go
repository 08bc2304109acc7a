package testservice

import (
	"context"
	"errors"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

type lengths struct{ least int }

func (l lengths) length(_ context.Context, s *wrapperspb.StringValue) (*wrapperspb.Int64Value, error) {
	if len(s.GetValue()) < l.least {
		return nil, errors.New("too short")
	}
	return wrapperspb.Int64(int64(len(s.GetValue()))), nil
}

// A described service is called as a generated one: with interceptors and without, on the server's
// own implementation. Only a read-only method needs what says so.
func TestDescribedServiceIsCalled(t *testing.T) {
	t.Parallel()
	desc := Describe("test.Lengths", Unary("Of", lengths.length), Unary("Get", lengths.length).ReadOnly())
	for i, name := range []string{"Of", "Get"} {
		m := desc.Methods[i]
		if m.MethodName != name {
			t.Errorf("method %d is %s", i, m.MethodName)
		}
		decode := func(in any) error {
			proto.Merge(in.(proto.Message), wrapperspb.String("four"))
			return nil
		}
		out, err := m.Handler(lengths{3}, t.Context(), decode, nil)
		if err != nil || out.(*wrapperspb.Int64Value).GetValue() != 4 {
			t.Errorf("%s: %v, %v", name, out, err)
		}
		intercepted := func(
			ctx context.Context, in any, i *grpc.UnaryServerInfo, handle grpc.UnaryHandler,
		) (any, error) {
			if i.FullMethod != "/test.Lengths/"+name || i.Server != (lengths{5}) {
				t.Errorf("an interceptor sees %+v", i)
			}
			return handle(ctx, in)
		}
		if out, err := m.Handler(lengths{5}, t.Context(), decode, intercepted); err == nil || out != nil {
			t.Errorf("%s: %v, %v", name, out, err)
		}
		found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName("test.Lengths." + name))
		if err != nil {
			t.Fatal(err)
		}
		level := found.Options().(*descriptorpb.MethodOptions).GetIdempotencyLevel()
		if (level == descriptorpb.MethodOptions_NO_SIDE_EFFECTS) != (name == "Get") {
			t.Errorf("%s: %v", name, level)
		}
	}
	Describe("test.Other", Unary("Of", lengths.length))
	if _, err := protoregistry.GlobalFiles.FindDescriptorByName("test.Other"); err == nil {
		t.Error("a service without a read-only method was registered")
	}
}
