package replica

import (
	"testing"
	"unsafe"
)

// TestCallIsOneBlock: a call, with its two headers, fits in the allocator's block of 768 bytes, of
// which eight are its own; the next larger one has 896.
func TestCallIsOneBlock(t *testing.T) {
	t.Parallel()
	if size := unsafe.Sizeof(call{}); size > 768-8 {
		t.Errorf("a call has %d bytes", size)
	}
}
