package replica

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func TestRawIsItsBytes(t *testing.T) {
	t.Parallel()
	want, err := proto.Marshal(wrapperspb.String("hello"))
	if err != nil {
		t.Fatal(err)
	}
	r := new(raw)
	r.set(nil)
	if err := proto.Unmarshal(want, r); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(r.b, want) {
		t.Errorf("unmarshalled %x, want %x", r.b, want)
	}
	got, err := proto.MarshalOptions{}.MarshalAppend([]byte("x"), r)
	if err != nil || !bytes.Equal(got, append([]byte("x"), want...)) {
		t.Errorf("marshalled %x, %v, want x and %x", got, err, want)
	}
	if n := proto.Size(r); n != len(want) {
		t.Errorf("size %d, want %d", n, len(want))
	}
}
