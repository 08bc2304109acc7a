package wire

import (
	"strings"
	"sync"
	"unicode/utf8"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

// ValidMethod says whether a full method name can be part of a message.
func ValidMethod(fullMethod string) bool {
	return len(fullMethod) <= MaxMethod && utf8.ValidString(fullMethod)
}

// readOnly remembers what ReadOnly has found out: by full method name, a bool.
var readOnly sync.Map

// ReadOnly says whether a method, by its full name, is declared to have no side effects (option
// idempotency_level = NO_SIDE_EFFECTS). A method whose descriptor isn't linked into this process
// isn't known to be: it is ordered, which is always right.
func ReadOnly(fullMethod string) bool {
	if known, ok := readOnly.Load(fullMethod); ok {
		return known.(bool)
	}
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(
		protoreflect.FullName(strings.ReplaceAll(strings.TrimPrefix(fullMethod, "/"), "/", ".")),
	)
	if err != nil {
		return false
	}
	reads := false
	if m, ok := found.(protoreflect.MethodDescriptor); ok {
		options, ok := m.Options().(*descriptorpb.MethodOptions)
		reads = ok && options.GetIdempotencyLevel() == descriptorpb.MethodOptions_NO_SIDE_EFFECTS
	}
	readOnly.Store(fullMethod, reads)
	return reads
}
