// Package testservice describes gRPC services to tests, as generated code would: from functions.
//
//	var desc = testservice.Describe("test.Counter",
//		testservice.Unary("Add", counter.add),
//		testservice.Unary("Get", counter.get).ReadOnly())
//
// where counter is what the service's implementations have in common: an interface, or one type.
package testservice

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

// A Method is a unary one.
type Method struct {
	name     string
	in, out  protoreflect.MessageDescriptor
	level    descriptorpb.MethodOptions_IdempotencyLevel
	describe func(service string) grpc.MethodDesc
}

// Unary returns a method that does this.
func Unary[S any, In, Out proto.Message](name string, do func(S, context.Context, In) (Out, error)) Method {
	var in In
	var out Out
	fresh := in.ProtoReflect().Type()
	return Method{
		name: name, in: fresh.Descriptor(), out: out.ProtoReflect().Descriptor(),
		describe: func(service string) grpc.MethodDesc {
			info := grpc.UnaryServerInfo{FullMethod: "/" + service + "/" + name}
			return grpc.MethodDesc{MethodName: name, Handler: func(
				srv any, ctx context.Context, dec func(any) error, i grpc.UnaryServerInterceptor,
			) (any, error) {
				in := fresh.New().Interface()
				if err := dec(in); err != nil {
					return nil, err
				}
				handle := func(ctx context.Context, req any) (any, error) {
					out, err := do(srv.(S), ctx, req.(In))
					if err != nil {
						return nil, err
					}
					return out, nil
				}
				if i == nil {
					return handle(ctx, in)
				}
				info := info
				info.Server = srv
				return i(ctx, in, &info, handle)
			}}
		},
	}
}

// ReadOnly returns the method as one whose descriptor says that it has no side effects.
func (m Method) ReadOnly() Method {
	m.level = descriptorpb.MethodOptions_NO_SIDE_EFFECTS
	return m
}

// Describe returns a service's description. If one of its methods is read-only, it registers what a
// generated file would; then a service is to be described once only.
func Describe(service string, methods ...Method) grpc.ServiceDesc {
	desc := grpc.ServiceDesc{ServiceName: service, HandlerType: (*any)(nil)}
	readOnly := false
	for _, m := range methods {
		desc.Methods = append(desc.Methods, m.describe(service))
		readOnly = readOnly || m.level == descriptorpb.MethodOptions_NO_SIDE_EFFECTS
	}
	if readOnly {
		register(protoreflect.FullName(service), methods)
	}
	return desc
}

// register panics when the service is registered already.
func register(service protoreflect.FullName, methods []Method) {
	file := &descriptorpb.FileDescriptorProto{
		Name: proto.String(string(service) + ".proto"), Package: proto.String(string(service.Parent())),
		Syntax: proto.String("proto3"),
	}
	described := &descriptorpb.ServiceDescriptorProto{Name: proto.String(string(service.Name()))}
	imported := map[string]bool{}
	for _, m := range methods {
		for _, message := range []protoreflect.MessageDescriptor{m.in, m.out} {
			if path := message.ParentFile().Path(); !imported[path] {
				imported[path] = true
				file.Dependency = append(file.Dependency, path)
			}
		}
		described.Method = append(described.Method, &descriptorpb.MethodDescriptorProto{
			Name:       proto.String(m.name),
			InputType:  proto.String("." + string(m.in.FullName())),
			OutputType: proto.String("." + string(m.out.FullName())),
			Options:    &descriptorpb.MethodOptions{IdempotencyLevel: m.level.Enum()},
		})
	}
	file.Service = append(file.Service, described)
	registered, err := protodesc.NewFile(file, protoregistry.GlobalFiles)
	if err == nil {
		err = protoregistry.GlobalFiles.RegisterFile(registered)
	}
	if err != nil {
		panic(err)
	}
}
