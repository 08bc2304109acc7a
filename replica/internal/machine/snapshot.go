package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// Past is what the protocol knows as of an executed turn, for a snapshot of the state as of that.
type Past struct {
	Executed orderstate.OrderNum
	LastTime int64 // orderstate.History.TimeAt
	Starts   []orderstate.Start
	Sessions []orderstate.SessionState
	Absent   map[orderstate.Session]time.Duration // how long a session has had no stream; 0: it has one
}

// Snapshot is a state with its past, and with the replies that belong to it.
type Snapshot struct {
	app     *App
	history *pb.History
	write   func(io.Writer) error
}

// What the watchdog calls turns that execute no method.
var restoring, snapshotting = "Restore", "Snapshot"

// Snapshot gives the state; past is as of what is executed. In a turn.
func (m *Machine) Snapshot(past Past) (*Snapshot, error) {
	h, err := m.replies.history(past)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "understudy: the reply log can't be sent: %v", err)
	}
	m.app.turns.running(&snapshotting)
	s := &Snapshot{app: m.app, history: h}
	err = m.app.Apart(context.Background(), snapshotting, func() (err error) {
		s.write, err = m.app.state.Snapshot()
		return err
	})
	if err == nil && s.write == nil {
		err = errors.New("it has returned no function, and no error")
	}
	if err != nil {
		return nil, status.Errorf(codes.Internal, "understudy: Snapshot: %v", err)
	}
	return s, nil
}

// History is the snapshot's past and its replies, in parts that are as large as a chunk at most, or
// have one entry.
func (s *Snapshot) History() []*pb.History { return split(s.history) }

// Write writes the state, while later turns run.
func (s *Snapshot) Write(w io.Writer) error {
	return s.app.Apart(context.Background(), "writing a snapshot", func() error { return s.write(w) })
}

// Replies are those of a snapshot that was read.
type Replies struct{ log *replyLog }

// ReadHistory reads what another replica's Snapshot.History has written. Whether such a past can be
// is orderstate.NewHistory's to say.
func ReadHistory(h *pb.History) (Past, Replies, error) {
	past := Past{
		Executed: orderstate.OrderNum(h.GetExecuted()), LastTime: h.GetLastTime(),
		Starts: wire.StartsFromProto(h.GetStarts()), Absent: map[orderstate.Session]time.Duration{},
	}
	log := newReplyLog()
	at := make(map[orderstate.Session]int, len(h.GetSessions()))
	for _, p := range h.GetSessions() {
		n := orderstate.Session(p.GetSession())
		if len(p.GetNonce()) != len(orderstate.Nonce{}) {
			return past, Replies{}, fmt.Errorf("replica: session %d of a snapshot has a nonce of %d bytes", n,
				len(p.GetNonce()))
		}
		at[n] = len(past.Sessions)
		past.Sessions = append(past.Sessions, orderstate.SessionState{
			Session: n, Nonce: orderstate.Nonce(p.GetNonce()), AnsweredUpTo: orderstate.SeqNum(p.GetAnsweredUpTo()),
			Ordered: map[orderstate.SeqNum]orderstate.OrderNum{},
		})
		past.Absent[n] = time.Duration(min(p.GetAbsentUs(), maxAbsentUs)) * time.Microsecond
		log.open(n)
	}
	for _, p := range h.GetReplies() {
		n, q := orderstate.Session(p.GetSession()), orderstate.SeqNum(p.GetSeqNum())
		i, known := at[n]
		if !known {
			return past, Replies{}, fmt.Errorf("replica: a snapshot has a reply of session %d, and no such session", n)
		}
		r, err := replyFromProto(p)
		if err != nil {
			return past, Replies{}, err
		}
		past.Sessions[i].Ordered[q] = r.OrderNum
		log.keep(log.sessions[n], q, r)
	}
	return past, Replies{log}, nil
}

// maxAbsentUs is longer than any session may be absent.
const maxAbsentUs = uint64(24 * time.Hour / time.Microsecond)

// Restore replaces the state by what is read of a snapshot's, and what the machine knows by the
// snapshot's past and replies, unless it fails. In a turn.
func (m *Machine) Restore(secret []byte, executed orderstate.OrderNum, replies Replies, state io.Reader) error {
	m.app.turns.running(&restoring)
	err := m.app.Apart(context.Background(), restoring, func() error { return m.app.state.Restore(state) })
	if err != nil {
		return fmt.Errorf("replica: Restore: %w", err)
	}
	m.secret = secret
	m.replies.begin(replies.log)
	m.executed.Store(uint64(executed))
	return nil
}

// history is a past, and the replies that belong to it: those that are logged of what it says is
// ordered.
func (l *replyLog) history(past Past) (*pb.History, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := &pb.History{Executed: uint64(past.Executed), LastTime: past.LastTime, Starts: wire.StartsToProto(past.Starts)}
	for _, s := range past.Sessions {
		h.Sessions = append(h.Sessions, &pb.SessionState{
			Session: uint64(s.Session), Nonce: s.Nonce[:], AnsweredUpTo: uint64(s.AnsweredUpTo),
			AbsentUs: uint64(past.Absent[s.Session] / time.Microsecond),
		})
		of := l.sessions[s.Session]
		for q := range s.Ordered {
			if of == nil || of.replies[q] == nil {
				return nil, fmt.Errorf("replica: message %d/%d is executed, and its reply isn't logged", s.Session, q)
			}
			p, err := replyToProto(orderstate.MessageID{Session: s.Session, SeqNum: q}, of.replies[q])
			if err != nil {
				return nil, err
			}
			h.Replies = append(h.Replies, p)
		}
	}
	return h, nil
}

// split keeps each message on the stream within the chunk size, or at one entry.
func split(h *pb.History) []*pb.History {
	parts := []*pb.History{{Executed: h.GetExecuted(), LastTime: h.GetLastTime(), Starts: h.GetStarts()}}
	size := 0
	part := func(bytes int) *pb.History {
		if size+bytes > wire.ChunkSize && size > 0 {
			parts = append(parts, &pb.History{})
			size = 0
		}
		size += bytes
		return parts[len(parts)-1]
	}
	for _, s := range h.GetSessions() {
		p := part(64)
		p.Sessions = append(p.Sessions, s)
	}
	for _, r := range h.GetReplies() {
		p := part(proto.Size(r) + 8)
		p.Replies = append(p.Replies, r)
	}
	return parts
}

func replyToProto(id orderstate.MessageID, r *Reply) (*pb.LoggedReply, error) {
	p := &pb.LoggedReply{Session: uint64(id.Session), SeqNum: uint64(id.SeqNum), OrderNum: uint64(r.OrderNum),
		Message: r.Payload, Ended: r.Ended,
		Header: mdToProto(r.Header), Trailer: mdToProto(r.Trailer)}
	if r.st != nil {
		var err error
		if p.Status, err = proto.Marshal(r.st); err != nil { // it was checked in its turn
			return nil, err
		}
	}
	return p, nil
}

func replyFromProto(p *pb.LoggedReply) (*Reply, error) {
	r := &Reply{OrderNum: orderstate.OrderNum(p.GetOrderNum()), Payload: p.GetMessage(),
		Header: mdFromProto(p.GetHeader()), Trailer: mdFromProto(p.GetTrailer()), Ended: p.GetEnded()}
	if len(p.GetStatus()) > 0 {
		r.st = new(spb.Status)
		if err := proto.Unmarshal(p.GetStatus(), r.st); err != nil {
			return nil, fmt.Errorf("replica: the status of logged reply %d/%d: %w", p.GetSession(), p.GetSeqNum(), err)
		}
	}
	return r, nil
}

func mdToProto(md metadata.MD) []*pb.MetadataEntry {
	var es []*pb.MetadataEntry
	for k, vs := range md {
		e := &pb.MetadataEntry{Key: k}
		for _, v := range vs {
			e.Values = append(e.Values, []byte(v)) // -bin values needn't be UTF-8
		}
		es = append(es, e)
	}
	return es
}

func mdFromProto(es []*pb.MetadataEntry) metadata.MD {
	var md metadata.MD
	for _, e := range es {
		if md == nil {
			md = metadata.MD{}
		}
		for _, v := range e.GetValues() {
			md[e.GetKey()] = append(md[e.GetKey()], string(v))
		}
	}
	return md
}
