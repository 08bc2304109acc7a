package transport_test

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/clock"
	"github.com/understudy-rpc/understudy/internal/wire"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	groupID = 0xbeef
	newest  = 1 << 40 // a revision as new as any that the store says
	echo    = "/test.Echo/Call"
	target  = "replicated://127.0.0.1:2379/greeter"
)

// cluster is a scripted group: replicas that speak the protocol's server side and execute nothing.
// By itself it is honest: its primary orders calls, in one epoch.
type cluster struct {
	t    testing.TB
	conn *grpc.ClientConn
	mon  transport.Monitor

	mu       sync.Mutex
	replicas map[string]*replica // by address
	primary  string
	epoch    uint64
	first    uint64
	order    uint64
	stable   uint64
	number   uint64
	required []string
	level    pb.Level
	sessions map[string]uint64 // by nonce
	ordered  map[uint64]uint64 // seqNum to orderNum
	calls    []*request
	// forgetful: neither calls nor streams are recorded, and everything is stable at once.
	forgetful bool
	// silent: no frame is acknowledged.
	silent bool
	// deaf: nobody answers a goodbye.
	deaf bool
	gate chan struct{} // closed when the epoch's is open

	// answer replaces the honest answer to a call; it returns nil to have that.
	answer func(*request) *answer
	// hello replaces the honest Welcome; it returns false to have that.
	hello func(*stream, *pb.Hello) bool

	now      election.State // told to every watch
	watchers []chan election.State
}

type replica struct {
	pb.UnimplementedConnectionServer

	c       *cluster
	member  election.Member
	addr    string
	lis     *bufconn.Listener
	srv     *grpc.Server
	streams []*stream
}

// request is a call as it arrived.
type request struct {
	replica   *replica
	ctx       context.Context
	header    *pb.Header
	raw       string // the header's bytes
	inMessage bool
	method    string
	payload   []byte
	at        time.Time
}

// answer is what a call gets.
type answer struct {
	header *pb.Header // nil: none
	raw    string     // instead of header
	err    error
	delay  time.Duration
}

type stream struct {
	replica *replica
	ctx     context.Context
	kill    context.CancelCauseFunc
	out     chan *pb.AttachResponse

	mu      sync.Mutex
	got     []*pb.AttachRequest
	goodbye bool // the client has ended the stream in an orderly way
}

func newCluster(t testing.TB, names ...string) *cluster {
	c := &cluster{
		t: t, replicas: map[string]*replica{}, primary: names[0], epoch: 10, first: 1, number: 1,
		level:    pb.Level_LEVEL_REFLECTED,
		sessions: map[string]uint64{}, ordered: map[uint64]uint64{}, gate: make(chan struct{}),
	}
	close(c.gate)
	for i, name := range names {
		c.start(name, name+":1", uint64(i+1))
	}
	for _, name := range names[1:] {
		c.required = append(c.required, c.named(name).member.String())
	}
	c.list(names...)
	return c
}

// start serves a replica.
func (c *cluster) start(name, addr string, incarnation uint64) *replica {
	r := &replica{c: c, member: election.Member{Name: name, Incarnation: incarnation}, addr: addr,
		lis: bufconn.Listen(1 << 20), srv: grpc.NewServer()}
	pb.RegisterConnectionServer(r.srv, r)
	healthpb.RegisterHealthServer(r.srv, health.NewServer())
	r.srv.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Echo", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Call", Handler: r.call}},
		Streams: []grpc.StreamDesc{{StreamName: "Half", ServerStreams: true, Handler: r.half},
			{StreamName: "Many", ServerStreams: true, Handler: func(any, grpc.ServerStream) error {
				panic("unreachable")
			}}},
	}, nil)
	c.mu.Lock()
	c.replicas[addr] = r
	c.mu.Unlock()
	go func() { _ = r.srv.Serve(r.lis) }()
	return r
}

func (c *cluster) named(name string) *replica {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.replicas {
		if r.member.Name == name {
			return r
		}
	}
	c.t.Fatalf("no replica %s", name)
	return nil
}

// set changes the cluster's script while it runs.
func (c *cluster) set(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
}

// list has the election list these replicas. All of them are in-sync, and so is the store's idea of
// the primary, which nobody asks.
func (c *cluster) list(names ...string) {
	primary := election.Member{Name: "primary", Incarnation: 1}
	view := election.State{Group: election.Group{ID: groupID, Protocol: wire.Protocol}, Primary: primary,
		Epoch:  1,
		InSync: []election.Member{primary}}
	for _, name := range names {
		r := c.named(name)
		view.Replicas = append(view.Replicas, election.Replica{Member: r.member, Addr: r.addr})
		view.InSync = append(view.InSync, r.member)
	}
	view.Revision = c.now.Revision + 1
	view.Fence = view.Revision
	c.show(view)
}

// show has the election say something.
func (c *cluster) show(view election.State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = view
	for _, w := range c.watchers {
		w <- view
	}
}

// store is the cluster as an election.
type store struct {
	election.Election
	c    *cluster
	away bool
}

func (s store) Read(context.Context) (election.State, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.c.now, nil
}

func (s store) Watch(ctx context.Context) <-chan election.State {
	ch, out := make(chan election.State, 100), make(chan election.State)
	if !s.away {
		s.c.mu.Lock()
		if s.c.now.Revision > 0 {
			ch <- s.c.now
		}
		s.c.watchers = append(s.c.watchers, ch)
		s.c.mu.Unlock()
	}
	go func() {
		defer close(out)
		for {
			select {
			case v := <-ch:
				select {
				case out <- v:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// options are those that every client of the cluster has.
func (c *cluster) options(opts ...transport.Option) []transport.Option {
	return append([]transport.Option{
		transport.WithStore(store{c: c}),
		transport.WithClock(clock.Monotonic()),
		transport.WithMonitor(&c.mon),
	}, opts...)
}

func (c *cluster) dialer() grpc.DialOption {
	return grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
		c.mu.Lock()
		r := c.replicas[addr]
		c.mu.Unlock()
		if r == nil {
			return nil, io.EOF
		}
		return r.lis.DialContext(ctx)
	})
}

// dial connects a client, which is closed with the test.
func (c *cluster) dial(opts ...transport.Option) *grpc.ClientConn {
	return c.dialWith(nil, opts...)
}

func (c *cluster) dialWith(more []grpc.DialOption, opts ...transport.Option) *grpc.ClientConn {
	all := append(transport.DialOptions(c.options(opts...)...), c.dialer(),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	conn, err := grpc.NewClient(target, append(all, more...)...)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		_ = conn.Close()
		c.stop()
	})
	c.conn = conn
	return conn
}

func (c *cluster) stop() {
	c.mu.Lock()
	all := c.replicas
	c.replicas = nil
	c.mu.Unlock()
	for _, r := range all {
		r.srv.Stop()
		_ = r.lis.Close()
	}
}

// crash kills a replica.
func (c *cluster) crash(name string) {
	r := c.named(name)
	c.mu.Lock()
	delete(c.replicas, r.addr)
	c.mu.Unlock()
	r.srv.Stop()
	_ = r.lis.Close()
}

// elect makes a replica primary of the next epoch, which starts at first, and tells every stream.
func (c *cluster) elect(name string, first uint64) {
	c.mu.Lock()
	c.primary, c.epoch, c.first, c.number = name, c.epoch+10, first, 1
	c.order = first - 1
	c.required, c.gate = nil, make(chan struct{})
	c.mu.Unlock()
	c.tell(&pb.AttachResponse{NewEpoch: c.newEpoch()})
}

// open says where the epoch starts.
func (c *cluster) open() {
	c.mu.Lock()
	msg := &pb.AttachResponse{EpochStart: c.epochStart(), RequiredSet: c.requiredSet()}
	select {
	case <-c.gate:
	default:
		close(c.gate)
	}
	c.mu.Unlock()
	c.tell(msg)
}

// tell sends to every stream.
func (c *cluster) tell(msg *pb.AttachResponse) {
	for _, s := range c.streams() {
		s.send(msg)
	}
}

func (c *cluster) streams() []*stream {
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []*stream
	for _, r := range c.replicas {
		all = append(all, r.streams...)
	}
	return all
}

// stream is the live stream to a replica.
func (c *cluster) stream(name string) *stream {
	c.t.Helper()
	synctest.Wait()
	r := c.named(name)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(r.streams) != 1 {
		c.t.Fatalf("%d streams to %s", len(r.streams), name)
	}
	return r.streams[0]
}

func (c *cluster) newEpoch() *pb.NewEpoch {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.newEpochLocked()
}

func (c *cluster) newEpochLocked() *pb.NewEpoch {
	for _, r := range c.replicas {
		if r.member.Name == c.primary {
			return &pb.NewEpoch{Epoch: c.epoch, Primary: r.member.Name, Incarnation: r.member.Incarnation,
				Fence: newest}
		}
	}
	return &pb.NewEpoch{Epoch: c.epoch, Primary: c.primary, Incarnation: 1, Fence: newest}
}

func (c *cluster) epochStart() *pb.EpochStart {
	return &pb.EpochStart{Epoch: c.epoch, FirstOrderNum: c.first, Stable: c.stable}
}

func (c *cluster) requiredSet() *pb.RequiredSet {
	return &pb.RequiredSet{Epoch: c.epoch, Number: c.number, Replicas: c.required}
}

func (s *stream) send(msg *pb.AttachResponse) {
	select {
	case s.out <- msg:
	case <-s.ctx.Done():
	}
}

// sent is what the client has sent on the stream, the Hello excepted.
func (s *stream) sent() []*pb.AttachRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.got)
}

// frames are those that arrived on the stream, put together.
func (s *stream) frames() []*pb.Frame {
	var all []*pb.Frame
	var a wire.Assembler
	for _, msg := range s.sent() {
		for _, f := range msg.Frames {
			whole, err := a.Add(proto.CloneOf(f))
			if err != nil {
				s.replica.c.t.Error(err)
			}
			if whole != nil {
				all = append(all, whole)
			}
		}
	}
	return all
}

func (r *replica) Attach(srv pb.Connection_AttachServer) error {
	if err := srv.SendHeader(nil); err != nil {
		return err
	}
	first, err := srv.Recv()
	if err != nil {
		return err
	}
	ctx, kill := context.WithCancelCause(srv.Context())
	s := &stream{replica: r, ctx: ctx, kill: kill, out: make(chan *pb.AttachResponse, 100)}
	defer kill(nil)
	c := r.c
	c.mu.Lock()
	r.streams = append(r.streams, s)
	hello := c.hello
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		r.streams = slices.DeleteFunc(r.streams, func(o *stream) bool { return o == s })
	}()
	if hello == nil || !hello(s, first.Hello) {
		s.send(&pb.AttachResponse{Welcome: r.welcome(first.Hello)})
	}
	go func() {
		for {
			msg, err := srv.Recv()
			if err != nil {
				s.mu.Lock()
				s.goodbye = err == io.EOF
				s.mu.Unlock()
				if !s.goodbye || !c.deaf {
					kill(err)
				}
				return
			}
			if msg.Hail {
				s.send(&pb.AttachResponse{Hailed: true})
				msg.Hail = false
			}
			if c.forgetful || proto.Size(msg) == 0 {
				continue
			}
			s.mu.Lock()
			s.got = append(s.got, msg)
			s.mu.Unlock()
			if n := len(msg.Frames); !c.silent && n > 0 && msg.Frames[n-1].More == 0 {
				s.send(&pb.AttachResponse{FramesUpTo: msg.Frames[n-1].SeqNum})
			}
		}
	}()
	for {
		select {
		case msg := <-s.out:
			if err := srv.Send(msg); err != nil {
				return err
			}
		case <-ctx.Done():
			if why := new(refusal); errors.As(context.Cause(ctx), &why) {
				srv.SetTrailer(metadata.Pairs(wire.HeaderKey, (&wire.Header{Refusal: why.why}).MetadataValue()))
				return why.error
			}
			if _, ok := status.FromError(context.Cause(ctx)); ok {
				return context.Cause(ctx)
			}
			return status.Error(codes.Unavailable, "the stream was killed")
		}
	}
}

// refusal kills a stream with a replica's own word in the trailer.
type refusal struct {
	error
	why pb.Refusal
}

// welcome opens the session, if it isn't.
func (r *replica) welcome(hello *pb.Hello) *pb.Welcome {
	c := r.c
	c.mu.Lock()
	defer c.mu.Unlock()
	number, ok := c.sessions[string(hello.Nonce)]
	if !ok {
		c.order++
		number = c.order
		c.stable = c.order
		c.sessions[string(hello.Nonce)] = number
	}
	return &pb.Welcome{
		Protocol: wire.Protocol, Session: number, Token: tokenOf(number), Group: groupID, Replica: r.member.Name,
		Incarnation: r.member.Incarnation, Level: c.level,
		Primary: c.newEpochLocked(), EpochStart: c.epochStart(), RequiredSet: c.requiredSet(),
	}
}

// tokenOf is what the requests of a session must carry.
func tokenOf(session uint64) uint64 { return 0x70c3e0000000 + session }

func (r *replica) call(_ any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	raw := new(emptypb.Empty) // keeps every field as unknown, with the bytes as they came
	if err := dec(raw); err != nil {
		return nil, err
	}
	header, payload, err := wire.CutHeader(raw.ProtoReflect().GetUnknown())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	q := &request{replica: r, at: time.Now(), ctx: ctx, payload: payload, method: echo, raw: string(header),
		inMessage: header != nil}
	if values := metadata.ValueFromIncomingContext(ctx, wire.HeaderKey); len(values) > 0 {
		q.raw = values[0]
	}
	if q.raw != "" {
		q.header = new(pb.Header)
		if err := proto.Unmarshal([]byte(q.raw), q.header); err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
	}
	r.c.mu.Lock()
	if !r.c.forgetful {
		r.c.calls = append(r.c.calls, q)
	}
	script := r.c.answer
	r.c.mu.Unlock()
	var a *answer
	if script != nil {
		a = script(q)
	}
	if a == nil {
		a = r.honest(q)
	}
	if a.delay > 0 {
		select {
		case <-time.After(a.delay):
		case <-ctx.Done():
		}
	}
	var front []byte
	value := a.raw
	if value == "" && a.header != nil {
		b, err := proto.Marshal(a.header)
		if err != nil {
			return nil, err
		}
		value = string(b)
	}
	switch {
	case value == "":
	case q.inMessage && a.err == nil:
		front = protowire.AppendString(protowire.AppendTag(nil, protowire.MaxValidNumber, protowire.BytesType), value)
	default:
		_ = grpc.SetTrailer(ctx, metadata.Pairs(wire.HeaderKey, value))
	}
	_ = grpc.SetHeader(ctx, metadata.Pairs("from", r.member.Name))
	if a.err != nil {
		return nil, a.err
	}
	req := new(wrapperspb.StringValue)
	_ = proto.Unmarshal(q.payload, req) // or it is another message
	b, err := proto.Marshal(wrapperspb.String(req.Value + " from " + r.member.Name))
	reply := new(emptypb.Empty)
	reply.ProtoReflect().SetUnknown(append(front, b...))
	return reply, err
}

// honest orders the call, once, if this replica is the primary.
func (r *replica) honest(q *request) *answer {
	c := r.c
	c.mu.Lock()
	gate := c.gate
	c.mu.Unlock()
	select {
	case <-gate:
	case <-q.ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.member.Name != c.primary || q.header.DestEpoch != c.epoch {
		return &answer{header: &pb.Header{SourceEpoch: c.epoch, Refusal: pb.Refusal_REFUSAL_NOT_PRIMARY},
			err: status.Error(codes.Unavailable, "not the primary")}
	}
	if q.header.Token != tokenOf(q.header.Session) {
		return &answer{header: &pb.Header{SourceEpoch: c.epoch},
			err: status.Error(codes.PermissionDenied, "not the session's token")}
	}
	k, ok := c.ordered[q.header.SeqNum]
	if !ok {
		c.order++
		k = c.order
		if c.forgetful {
			c.stable = k - min(k-1, 32)
		} else {
			c.ordered[q.header.SeqNum] = k
		}
	}
	return &answer{header: c.header(q, k)}
}

// header is that of a reply with an orderNum: what the session lacks up to there is announced.
func (c *cluster) header(q *request, k uint64) *pb.Header {
	h := &pb.Header{SourceEpoch: c.epoch, FirstOrderNum: c.first, OrderNum: k, Stable: c.stable, RequiredSet: c.number,
		AuthorityUs: 1e6}
	if above := max(q.header.HeldUpTo, c.stable); above < k {
		h.SourceOrderInfo = []*pb.Run{c.run(above+1, k)}
	}
	return h
}

func (c *cluster) run(first, last uint64) *pb.Run {
	return &pb.Run{Epoch: c.epoch, EpochFirst: c.first, First: first, Count: uint32(last - first + 1),
		Sealed: []byte("sealed")}
}

// honestly is the honest answer, for scripts.
func honestly(q *request) *answer { return q.replica.honest(q) }

// received are the calls that arrived.
func (c *cluster) received() []*request {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.calls)
}

// say makes a call.
func say(ctx context.Context, conn *grpc.ClientConn, text string, opts ...grpc.CallOption) (string, error) {
	reply := new(wrapperspb.StringValue)
	err := conn.Invoke(ctx, echo, wrapperspb.String(text), reply, opts...)
	return reply.Value, err
}

// result of a call in the background.
type result struct {
	reply string
	err   error
	took  time.Duration
}

func sayLater(ctx context.Context, conn *grpc.ClientConn, text string, opts ...grpc.CallOption) <-chan result {
	ch := make(chan result, 1)
	began := time.Now()
	go func() {
		reply, err := say(ctx, conn, text, opts...)
		ch <- result{reply, err, time.Since(began)}
	}()
	return ch
}

// within runs a test in fake time, with a deadline on everything.
func within(t *testing.T, f func(t *testing.T, ctx context.Context)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		f(t, ctx)
	})
}
