package wire

import (
	"crypto/hmac"
	"encoding/binary"

	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// CloseMark seals a mark of the store, for its way through a source.
func (s *Seal) CloseMark(m *pb.StoreMark) {
	c := s.macs.Get().(*mac)
	defer s.macs.Put(c)
	m.Mac = append([]byte(nil), c.mark(m)...)
}

// OpenMark says whether a mark was sealed by a replica of this group.
func (s *Seal) OpenMark(m *pb.StoreMark) bool {
	c := s.macs.Get().(*mac)
	defer s.macs.Put(c)
	return hmac.Equal(m.GetMac(), c.mark(m))
}

func (m *mac) mark(of *pb.StoreMark) []byte {
	b := append(m.buf[:0], domainMark)
	b = binary.AppendVarint(b, of.GetRevision())
	b = binary.AppendUvarint(b, of.GetEpoch())
	b = binary.AppendVarint(b, of.GetFence())
	m.h.Reset()
	m.h.Write(b)
	m.buf = b
	return m.h.Sum(m.sum[:0])[:macSize]
}
