package wire

import (
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// Chunks splits a frame whose message is larger than ChunkSize: the first chunk has all fields, the
// following ones message and more. Most frames are one chunk, and returned as they are.
func Chunks(f *pb.Frame) []*pb.Frame {
	if len(f.GetMessage()) <= ChunkSize {
		return []*pb.Frame{f}
	}
	var chunks []*pb.Frame
	rest := f.GetMessage()
	for first := true; len(rest) > 0; first = false {
		n := min(len(rest), ChunkSize)
		c := &pb.Frame{Message: rest[:n], More: uint32(len(rest) - n)}
		if first {
			c = bare(f)
			c.Message, c.More = rest[:n], uint32(len(rest)-n)
		}
		chunks = append(chunks, c)
		rest = rest[n:]
	}
	return chunks
}

// bare is a frame without its message.
func bare(f *pb.Frame) *pb.Frame {
	return &pb.Frame{Group: f.Group, Session: f.Session, SeqNum: f.SeqNum, Outstanding: f.Outstanding, Method: f.Method,
		More: f.More, Level: f.Level}
}

// byReference is from how many bytes on a frame's message isn't copied to be sent.
const byReference = 4 << 10

// Parts encodes a source's message in parts, of which large messages of frames are their own bytes;
// nil if it has none.
func Parts(req *pb.AttachRequest) ([][]byte, error) {
	if !slices.ContainsFunc(req.GetFrames(), func(f *pb.Frame) bool { return len(f.GetMessage()) >= byReference }) {
		return nil, nil
	}
	var parts [][]byte
	var buf []byte
	whole := proto.MarshalOptions{UseCachedSize: true}
	for _, f := range req.GetFrames() {
		message := f.GetMessage()
		if len(message) < byReference {
			message = nil
		} else {
			f = bare(f)
		}
		size := proto.Size(f)
		if message != nil {
			size += protowire.SizeTag(frameMessage) + protowire.SizeBytes(len(message))
		}
		buf = protowire.AppendTag(buf, attachFrames, protowire.BytesType)
		buf = protowire.AppendVarint(buf, uint64(size))
		var err error
		if buf, err = whole.MarshalAppend(buf, f); err != nil {
			return nil, err
		}
		if message != nil {
			buf = protowire.AppendTag(buf, frameMessage, protowire.BytesType)
			buf = protowire.AppendVarint(buf, uint64(len(message)))
			parts = append(parts, buf, message)
			buf = nil
		}
	}
	buf, err := proto.MarshalOptions{}.MarshalAppend(buf, &pb.AttachRequest{
		Hello: req.Hello, DestOrderInfo: req.DestOrderInfo, AcknowledgedEpoch: req.AcknowledgedEpoch,
		WaitingFor: req.WaitingFor, Ended: req.Ended, ToldEpoch: req.ToldEpoch,
		Hail: req.Hail,
	})
	if err != nil {
		return nil, err
	}
	if len(buf) > 0 {
		parts = append(parts, buf)
	}
	return parts, nil
}

// Fields of AttachRequest and Frame.
const (
	attachFrames = 2
	frameMessage = 6
)

// growth is by how much a frame's room may exceed what has come of it.
const growth = 8

// Assembler puts the frames of one stream together from their chunks. The zero value is ready.
type Assembler struct {
	partial *pb.Frame
	dropped bool // partial was
}

// Held is how many bytes are kept of a frame that isn't whole yet.
func (a *Assembler) Held() int {
	if a.partial == nil {
		return 0
	}
	return cap(a.partial.Message)
}

// Begun is the seqNum of the frame that isn't whole yet; 0 if there is none.
func (a *Assembler) Begun() orderstate.SeqNum { return orderstate.SeqNum(a.partial.GetSeqNum()) }

// Drop gives up the frame that isn't whole yet, if there is one. What is to come of it is checked,
// and passed over.
func (a *Assembler) Drop() {
	if a.partial != nil {
		a.partial.Message, a.dropped = nil, true
	}
}

// Add takes the next chunk, and returns a frame when it is whole. What is declared is bounded
// before it is allocated; a malformed chunk ends the stream.
func (a *Assembler) Add(f *pb.Frame) (*pb.Frame, error) {
	if a.partial == nil {
		if err := checkFrame(f); err != nil {
			return nil, err
		}
		if f.GetMore() == 0 {
			return f, nil
		}
		a.partial = f
		return nil, nil
	}
	p := a.partial
	if f.GetMethod() != "" || f.GetSession() != 0 || len(f.GetMessage()) == 0 ||
		uint64(len(f.GetMessage()))+uint64(f.GetMore()) != uint64(p.More) {
		return nil, errors.New("wire: a chunk doesn't continue its frame")
	}
	if a.dropped {
		if p.More = f.GetMore(); p.More == 0 {
			a.partial, a.dropped = nil, false
		}
		return nil, nil
	}
	if whole := len(p.Message) + int(p.More); cap(p.Message)-len(p.Message) < len(f.GetMessage()) {
		// Room for what is declared, but never more than some times what has come.
		p.Message = append(make([]byte, 0, min(whole, growth*(len(p.Message)+len(f.GetMessage())))), p.Message...)
	}
	p.Message = append(p.Message, f.GetMessage()...)
	p.More = f.GetMore()
	if p.More > 0 {
		return nil, nil
	}
	a.partial = nil
	return p, nil
}

func checkFrame(f *pb.Frame) error {
	switch {
	case f.GetSession() == 0 || f.GetSeqNum() == 0:
		return errors.New("wire: a frame needs a session and a seqNum")
	case f.GetOutstanding() == 0 || f.GetOutstanding() > f.GetSeqNum():
		return fmt.Errorf("wire: seqNum %d can't have %d outstanding", f.GetSeqNum(), f.GetOutstanding())
	case f.GetMethod() == "" || len(f.GetMethod()) > MaxMethod:
		return fmt.Errorf("wire: a frame's method has %d bytes", len(f.GetMethod()))
	case uint64(len(f.GetMessage()))+uint64(f.GetMore()) > MaxMessage:
		return fmt.Errorf("wire: a frame of %d bytes; at most %d are taken",
			uint64(len(f.GetMessage()))+uint64(f.GetMore()), MaxMessage)
	}
	return nil
}

// FrameMessage returns the name of a frame's message, and the low-water mark that it declares.
func FrameMessage(f *pb.Frame) (orderstate.MessageID, orderstate.SeqNum) {
	return orderstate.MessageID{Session: orderstate.Session(f.GetSession()), SeqNum: orderstate.SeqNum(f.GetSeqNum())},
		orderstate.SeqNum(f.GetSeqNum() - f.GetOutstanding())
}
