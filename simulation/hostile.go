package simulation

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/understudy-rpc/understudy/internal/wire"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// hostile is a client beside the others that speaks the protocol itself, and not as it should. It
// knows what any client knows: its own session and token. Of what it asks for, some is executed;
// the others must notice nothing of it but that they wait a little.
type hostile struct {
	r      *run
	d      dice
	conns  []*grpc.ClientConn // by replica
	ctx    context.Context    // of all it does
	cancel context.CancelFunc
	doing  sync.WaitGroup

	streams []stream
	seqNum  uint64 // the last that it has used
	asked   int

	mu                           sync.Mutex // guards what follows
	session, token, group, epoch uint64
}

type stream = grpc.BidiStreamingClient[pb.AttachRequest, pb.AttachResponse]

const (
	hostileHost = "hostile"
	hostileID   = "hostile" // what the IDs of its requests begin with
)

// harass goes on until the faults end.
func (r *run) harass() {
	h := &hostile{r: r, d: newDice(r.plan.Seed, 6)}
	h.ctx, h.cancel = context.WithCancel(r.ctx)
	for i := range r.plan.Replicas {
		conn, err := grpc.NewClient(fmt.Sprintf("passthrough:///replica%d:1", i),
			grpc.WithContextDialer(r.cluster.Network().Dialer(hostileHost)),
			grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			panic(err)
		}
		h.conns = append(h.conns, conn)
	}
	time.Sleep(h.d.between(0, 50*time.Millisecond))
	for r.elapsed() < r.plan.Heal {
		h.act()
		time.Sleep(h.d.between(time.Millisecond, 60*time.Millisecond))
	}
	h.cancel()
	for _, conn := range h.conns {
		_ = conn.Close()
	}
	h.doing.Wait()
}

// act does one thing that it shouldn't do.
func (h *hostile) act() {
	if h.d.percent(3) || !h.known() {
		h.open()
		return
	}
	what := oneOf(h.d, "calls", "calls", "withholds", "withholds", "withholds", "forges", "nobody's", "nobody's",
		"parts", "runs",
		"acknowledges", "asks", "is to come", "another's", "hangs up")
	h.r.coverage.add("a hostile client's act: "+what, 1)
	switch what {
	case "calls": // as it should, but for what it holds: it says that it has no reply yet
		h.call(h.next(), true, false)
	case "withholds": // backups aren't sent what the primary is
		h.call(h.next(), false, false)
	case "forges": // backups are sent something else
		h.call(h.next(), true, true)
	case "nobody's": // frames whose requests never come
		from := h.seqNum + 1 + h.d.Uint64N(1<<20)
		for k := range uint64(1 + h.d.IntN(100)) {
			h.send(h.d.IntN(len(h.conns)),
				&pb.AttachRequest{Frames: []*pb.Frame{h.frame(from+k, "nobody asks for it")}})
		}
	case "parts": // a frame whose rest never comes
		f := h.frame(h.seqNum+1+h.d.Uint64N(100), strings.Repeat("x", 3*wire.ChunkSize))
		h.send(h.d.IntN(len(h.conns)), &pb.AttachRequest{Frames: wire.Chunks(f)[:1]})
	case "runs": // an order that the primary never made
		first := 1 + h.d.Uint64N(1000)
		forged := &pb.Run{Epoch: h.now(), EpochFirst: 1 + h.d.Uint64N(first), First: first, Count: 1 + h.d.Uint32N(50),
			Sealed: h.nonce()}
		h.send(h.d.IntN(len(h.conns)), &pb.AttachRequest{DestOrderInfo: []*pb.Run{forged}})
	case "acknowledges": // an epoch that nobody has begun
		h.send(h.d.IntN(len(h.conns)), &pb.AttachRequest{AcknowledgedEpoch: h.now() + h.d.Uint64N(1<<40)})
	case "asks": // again and again what is stable
		for range 1 + h.d.IntN(50) {
			asked := &pb.WaitingFor{Epoch: h.now(), HeldUpTo: h.d.Uint64N(1000), Stable: h.d.percent(50)}
			h.send(h.d.IntN(len(h.conns)), &pb.AttachRequest{WaitingFor: asked})
		}
	case "is to come": // streams that name a session to come
		for range 1 + h.d.IntN(20) {
			h.claim(1 << 40)
		}
	case "another's": // a session that isn't its own
		h.claim(1 + h.d.Uint64N(64))
	case "hangs up":
		if n := len(h.streams); n > 0 {
			i := h.d.IntN(n)
			_ = h.streams[i].CloseSend()
		}
	}
}

func (h *hostile) known() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.session != 0 && len(h.streams) > 0
}

// now is the epoch that it knows.
func (h *hostile) now() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.epoch
}

// claim opens a stream in a session that isn't its own.
func (h *hostile) claim(session uint64) {
	h.mu.Lock()
	group := h.group
	h.mu.Unlock()
	h.attach(h.d.IntN(len(h.conns)),
		&pb.Hello{Protocol: wire.Protocol, Nonce: h.nonce(), Session: session, Group: group}, true)
}

func (h *hostile) nonce() []byte {
	b := make([]byte, 16)
	for i := range b {
		b[i] = byte(h.d.Uint32())
	}
	return b
}

// open opens a session, with a stream to each replica.
func (h *hostile) open() {
	nonce := h.nonce()
	h.mu.Lock()
	h.session = 0
	h.mu.Unlock()
	h.seqNum, h.streams = 0, nil
	primary := number(h.r.nemesis.host("primary"))
	h.attach(primary, &pb.Hello{Protocol: wire.Protocol, Nonce: nonce}, true)
	time.Sleep(5 * time.Millisecond) // the welcome comes, or doesn't
	h.mu.Lock()
	session, group := h.session, h.group
	h.mu.Unlock()
	if session == 0 {
		h.streams = nil
		return
	}
	for i := range h.conns {
		if i != primary {
			hello := &pb.Hello{Protocol: wire.Protocol, Nonce: nonce, Session: session, Group: group}
			h.attach(i, hello, h.d.percent(70))
		}
	}
}

// attach opens a stream, and reads what comes if it isn't deaf.
func (h *hostile) attach(i int, hello *pb.Hello, reads bool) {
	s, err := pb.NewConnectionClient(h.conns[i]).Attach(h.ctx)
	if err == nil {
		err = s.Send(&pb.AttachRequest{Hello: hello})
	}
	if err != nil {
		return
	}
	h.streams = append(h.streams, s)
	if reads {
		h.doing.Go(func() { h.read(s) })
	}
}

func (h *hostile) read(s stream) {
	for {
		m, err := s.Recv()
		if err != nil {
			return
		}
		h.mu.Lock()
		if w := m.GetWelcome(); w.GetToken() != 0 {
			h.session, h.token, h.group, h.epoch = w.GetSession(), w.GetToken(), w.GetGroup(), w.GetPrimary().GetEpoch()
		}
		h.epoch = max(h.epoch, m.GetNewEpoch().GetEpoch())
		h.mu.Unlock()
	}
}

// send sends on some stream to any replica; it may have ended.
func (h *hostile) send(i int, m *pb.AttachRequest) {
	if len(h.streams) > 0 {
		_ = h.streams[i%len(h.streams)].Send(m)
	}
}

func (h *hostile) next() uint64 {
	h.seqNum++
	return h.seqNum
}

// frame is one of the session's, whose request is a read of the first cell.
func (h *hostile) frame(seqNum uint64, message string) *pb.Frame {
	h.mu.Lock()
	defer h.mu.Unlock()
	b, _ := proto.Marshal(wrapperspb.String(message))
	return &pb.Frame{Group: h.group, Session: h.session, SeqNum: seqNum, Outstanding: 1, Method: method, Message: b}
}

// call makes a call of the session, and doesn't wait for its end.
func (h *hostile) call(seqNum uint64, frames, forged bool) {
	h.asked++
	request, _ := json.Marshal(Request{ID: fmt.Sprintf("%s%d", hostileID, h.asked), Op: "read"})
	if frames {
		text := string(request)
		if forged {
			text = "something else"
		}
		for i := range h.streams {
			h.send(i, &pb.AttachRequest{Frames: []*pb.Frame{h.frame(seqNum, text)}})
		}
	}
	h.mu.Lock()
	header, _ := proto.Marshal(&pb.Header{
		Session: h.session, SeqNum: seqNum, Outstanding: 1 + h.d.Uint64N(seqNum), DestEpoch: h.epoch, Token: h.token,
		HeldUpTo: h.d.Uint64N(1 << 20),
	})
	h.mu.Unlock()
	conn := h.conns[number(h.r.nemesis.host("primary"))]
	h.doing.Go(func() {
		ctx, cancel := context.WithTimeout(h.ctx, time.Second)
		defer cancel()
		ctx = metadata.AppendToOutgoingContext(ctx, wire.HeaderKey, string(header))
		if conn.Invoke(ctx, method, wrapperspb.String(string(request)), new(wrapperspb.StringValue)) == nil {
			h.r.coverage.add("a hostile client's call was executed", 1)
		}
	})
}
