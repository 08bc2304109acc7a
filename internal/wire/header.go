// Package wire turns what travels between processes into what package orderstate works on, and
// back: nothing from the network gets further without having been bounded and checked here.
//
// It has the header and its two carriers, gRPC metadata and the message (Header), runs with their
// seals (Seal), frames in chunks (Chunks, Assembler), and the sizes that bound them all.
package wire

import (
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

const (
	// HeaderKey is the one metadata key: in the header of requests, in the trailer of replies.
	HeaderKey = "understudy-bin"
	// MaxHeader bounds a header that is sent (R5), in bytes before base64; what doesn't fit goes on
	// the session's stream.
	MaxHeader = 2 << 10
	// maxHeaderRead bounds a header that is read.
	maxHeaderRead = 8 << 10
	// MaxMessage bounds one request's bytes.
	MaxMessage = 64 << 20
	// MaxInMessage bounds a message that carries the header itself.
	MaxInMessage = 64 << 10
	// MaxMethod bounds a full method name.
	MaxMethod = 1 << 10
	// ChunkSize bounds what one frame, and one message on a stream of ours, carries.
	ChunkSize = 256 << 10
	// StreamWindow and ConnWindow are the bytes that a receiver lets a sender have on their way, on
	// one stream of HTTP/2 and on one connection. They are fixed, since the alternative costs a
	// ping, and its answer, each time that something is received while none is under way: two more
	// packets for each lone frame, request or reply.
	StreamWindow = 1 << 20
	ConnWindow   = 4 << 20
)

// Header is the Header of header.proto, whose comments say what each field is. Each call makes and
// reads two of them, so that they are coded here by hand, without reflection or garbage; a fuzz
// target holds this against the protobuf library.
type Header struct {
	Session               orderstate.Session
	SeqNum                orderstate.SeqNum
	SourceEpoch           orderstate.Epoch
	DestEpoch             orderstate.Epoch
	HeldUpTo              orderstate.OrderNum
	Outstanding           orderstate.SeqNum
	DestOrderInfo         []orderstate.Announcement
	SourceOrderInfo       []orderstate.Announcement
	OrderNum              orderstate.OrderNum
	FirstOrderNum, Stable orderstate.OrderNum
	RequiredSet           uint64
	AuthorityUs           uint64
	Level                 pb.Level
	Refusal               pb.Refusal
	Code                  codes.Code
	Token                 uint64

	one [1]orderstate.Announcement // the room of SourceOrderInfo, while one run is all it has
}

// Announce makes a run the header's SourceOrderInfo.
func (h *Header) Announce(a orderstate.Announcement) { h.SourceOrderInfo = append(h.one[:0], a) }

// The numbers of the fields in header.proto.
const (
	fieldSession = iota + 1
	fieldSeqNum
	fieldSourceEpoch
	fieldDestEpoch
	fieldHeldUpTo
	fieldOutstanding
	fieldDestOrderInfo
	fieldSourceOrderInfo
	fieldOrderNum
	fieldFirstOrderNum
	fieldStable
	fieldRequiredSet
	fieldAuthorityUs
	fieldLevel
	fieldRefusal
	fieldCode
	fieldToken
)

const (
	runEpoch = iota + 1
	runEpochFirst
	runFirst
	runCount
	runSealed
)

// Size is the number of bytes that AppendTo adds.
func (h *Header) Size() int {
	n := 0
	h.numbers(func(field protowire.Number, v uint64) { n += protowire.SizeTag(field) + protowire.SizeVarint(v) })
	for _, runs := range [][]orderstate.Announcement{h.DestOrderInfo, h.SourceOrderInfo} {
		for _, a := range runs {
			n += 1 + protowire.SizeBytes(sizeRun(a))
		}
	}
	return n
}

// AppendTo appends the header, as the protobuf library would marshal it but for the order of
// fields.
func (h *Header) AppendTo(b []byte) []byte {
	h.numbers(func(field protowire.Number, v uint64) { b = appendNumber(b, field, v) })
	for _, a := range h.DestOrderInfo {
		b = appendRun(b, fieldDestOrderInfo, a)
	}
	for _, a := range h.SourceOrderInfo {
		b = appendRun(b, fieldSourceOrderInfo, a)
	}
	return b
}

// numbers calls f with each field that is a number, and not 0.
func (h *Header) numbers(f func(protowire.Number, uint64)) {
	for i, v := range [...]uint64{
		uint64(h.Session), uint64(h.SeqNum), uint64(h.SourceEpoch), uint64(h.DestEpoch), uint64(h.HeldUpTo),
		uint64(h.Outstanding), 0, 0,
		uint64(h.OrderNum), uint64(h.FirstOrderNum), uint64(h.Stable), h.RequiredSet, h.AuthorityUs, uint64(h.Level),
		uint64(h.Refusal), uint64(h.Code), h.Token,
	} {
		if v != 0 {
			f(protowire.Number(i+1), v)
		}
	}
}

func appendNumber(b []byte, field protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
}

func sizeRun(a orderstate.Announcement) int {
	n := 0
	for _, v := range [...]uint64{uint64(a.Epoch), uint64(a.EpochFirst), uint64(a.First), uint64(a.Count)} {
		if v != 0 {
			n += 1 + protowire.SizeVarint(v)
		}
	}
	if len(a.Sealed) > 0 {
		n += 1 + protowire.SizeBytes(len(a.Sealed))
	}
	return n
}

func appendRun(b []byte, field protowire.Number, a orderstate.Announcement) []byte {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(sizeRun(a)))
	for i, v := range [...]uint64{uint64(a.Epoch), uint64(a.EpochFirst), uint64(a.First), uint64(a.Count)} {
		if v != 0 {
			b = appendNumber(b, protowire.Number(i+1), v)
		}
	}
	if len(a.Sealed) > 0 {
		b = protowire.AppendBytes(protowire.AppendTag(b, runSealed, protowire.BytesType), a.Sealed)
	}
	return b
}

var errMalformedHeader = errors.New("wire: the header is malformed")

// Parse reads a header, whatever carried it, and checks what holds for both directions. It aliases
// nothing of b. Unknown fields are passed over. After an error h is of no use. A Header mustn't be
// copied once it was read.
func (h *Header) Parse(b []byte) error {
	if len(b) > maxHeaderRead {
		return fmt.Errorf("wire: a header of %d bytes; at most %d are read", len(b), maxHeaderRead)
	}
	*h = Header{}
	return fields(b, func(field protowire.Number, v uint64) {
		h.set(field, v)
	}, func(field protowire.Number, v []byte) error {
		if field != fieldSourceOrderInfo && field != fieldDestOrderInfo {
			return nil
		}
		a, err := parseRun(v)
		switch {
		case field == fieldDestOrderInfo:
			h.DestOrderInfo = append(h.DestOrderInfo, a)
		case len(h.SourceOrderInfo) == 0:
			h.Announce(a)
		default:
			h.SourceOrderInfo = append(h.SourceOrderInfo, a)
		}
		return err
	})
}

func (h *Header) set(field protowire.Number, v uint64) {
	switch field {
	case fieldSession:
		h.Session = orderstate.Session(v)
	case fieldSeqNum:
		h.SeqNum = orderstate.SeqNum(v)
	case fieldSourceEpoch:
		h.SourceEpoch = orderstate.Epoch(v)
	case fieldDestEpoch:
		h.DestEpoch = orderstate.Epoch(v)
	case fieldHeldUpTo:
		h.HeldUpTo = orderstate.OrderNum(v)
	case fieldOutstanding:
		h.Outstanding = orderstate.SeqNum(v)
	case fieldOrderNum:
		h.OrderNum = orderstate.OrderNum(v)
	case fieldFirstOrderNum:
		h.FirstOrderNum = orderstate.OrderNum(v)
	case fieldStable:
		h.Stable = orderstate.OrderNum(v)
	case fieldRequiredSet:
		h.RequiredSet = v
	case fieldAuthorityUs:
		h.AuthorityUs = v
	case fieldLevel:
		h.Level = pb.Level(int32(v))
	case fieldRefusal:
		h.Refusal = pb.Refusal(int32(v))
	case fieldCode:
		h.Code = codes.Code(v)
	case fieldToken:
		h.Token = v
	}
}

// parseRun reads one announcement, and checks its bounds. The seal isn't looked at.
func parseRun(b []byte) (a orderstate.Announcement, err error) {
	var count uint32
	err = fields(b, func(field protowire.Number, v uint64) {
		switch field {
		case runEpoch:
			a.Epoch = orderstate.Epoch(v)
		case runEpochFirst:
			a.EpochFirst = orderstate.OrderNum(v)
		case runFirst:
			a.First = orderstate.OrderNum(v)
		case runCount:
			count = uint32(v)
		}
	}, func(field protowire.Number, v []byte) error {
		if field == runSealed {
			a.Sealed = slices.Clone(v)
		}
		return nil
	})
	a.Count = int(count)
	if err == nil {
		err = checkRun(a)
	}
	return a, err
}

// fields calls number or bytes for each field of a message. A field of another type is passed over,
// as an unknown one is.
func fields(b []byte, number func(protowire.Number, uint64), bytes func(protowire.Number, []byte) error) error {
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 || field > protowire.MaxValidNumber {
			return errMalformedHeader
		}
		b = b[n:]
		switch kind {
		case protowire.VarintType:
			var v uint64
			if v, n = protowire.ConsumeVarint(b); n >= 0 {
				number(field, v)
			}
		case protowire.BytesType:
			var v []byte
			if v, n = protowire.ConsumeBytes(b); n >= 0 {
				if err := bytes(field, v); err != nil {
					return err
				}
			}
		default:
			n = protowire.ConsumeFieldValue(field, kind, b)
		}
		if n < 0 {
			return errMalformedHeader
		}
		b = b[n:]
	}
	return nil
}

// MetadataValue returns what gRPC metadata has under HeaderKey to carry a header.
func (h *Header) MetadataValue() string { return string(h.AppendTo(make([]byte, 0, h.Size()))) }

// FromMetadata reads the header that metadata carries: values is what it has under HeaderKey.
func (h *Header) FromMetadata(values []string) error {
	if len(values) != 1 {
		return fmt.Errorf("wire: %d headers under %s, there must be one", len(values), HeaderKey)
	}
	return h.Parse([]byte(values[0]))
}

// headerField is the header's other carrier: one length-delimited field in front of the message's
// own bytes. Its number is the highest there is, so that no message has one of its own, and whoever
// doesn't know it sees an unknown field.
const headerField protowire.Number = protowire.MaxValidNumber

// headerTag is how a message begins that carries a header.
var headerTag = string(protowire.AppendTag(nil, headerField, protowire.BytesType))

// SizeFront is the number of bytes that AppendFront adds.
func (h *Header) SizeFront() int { return len(headerTag) + protowire.SizeBytes(h.Size()) }

// AppendFront appends what goes in front of a message's bytes to carry a header.
func (h *Header) AppendFront(b []byte) []byte {
	return h.AppendTo(protowire.AppendVarint(append(b, headerTag...), uint64(h.Size())))
}

// CutHeader splits a message into the bytes of the header that it carries, nil if it has none, and
// its own.
func CutHeader(b []byte) (header, message []byte, err error) {
	if len(b) < len(headerTag) || string(b[:len(headerTag)]) != headerTag {
		return nil, b, nil
	}
	header, n := protowire.ConsumeBytes(b[len(headerTag):])
	if n < 0 {
		return nil, nil, errMalformedHeader
	}
	return header, b[len(headerTag)+n:], nil
}

// FromMessage reads the header that a message carries, if it does, and returns the message's own
// bytes, which alias b.
func (h *Header) FromMessage(b []byte) (message []byte, carried bool, err error) {
	header, message, err := CutHeader(b)
	if err != nil || header == nil {
		return message, false, err
	}
	return message, true, h.Parse(header)
}

// CheckRequest checks what a request's header must have. Without a seqNum it is of a read-only
// method.
func CheckRequest(h *Header) error {
	switch {
	case h.Session == 0:
		return errors.New("wire: a request needs a session")
	case (h.Outstanding == 0) != (h.SeqNum == 0) || h.Outstanding > h.SeqNum:
		return fmt.Errorf("wire: seqNum %d can't have %d outstanding", h.SeqNum, h.Outstanding)
	case h.Level < 0 || h.Level > pb.Level_LEVEL_STABLE:
		return fmt.Errorf("wire: unknown level %d", h.Level)
	}
	return nil
}

// Request returns the name of the message that a request's header declares, and the low-water mark.
func (h *Header) Request() (id orderstate.MessageID, answeredUpTo orderstate.SeqNum) {
	return orderstate.MessageID{Session: h.Session, SeqNum: h.SeqNum}, h.SeqNum - h.Outstanding
}

// StartsToProto wraps a table of epoch starts.
func StartsToProto(starts []orderstate.Start) []*pb.Start {
	ps := make([]*pb.Start, len(starts))
	for i, s := range starts {
		ps[i] = &pb.Start{Epoch: uint64(s.Epoch), FirstOrderNum: uint64(s.First)}
	}
	return ps
}

// StartsFromProto reads a table of epoch starts.
func StartsFromProto(ps []*pb.Start) []orderstate.Start {
	starts := make([]orderstate.Start, len(ps))
	for i, p := range ps {
		starts[i] = orderstate.Start{Epoch: orderstate.Epoch(p.GetEpoch()),
			First: orderstate.OrderNum(p.GetFirstOrderNum())}
	}
	return starts
}
