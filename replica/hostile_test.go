package replica_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/understudy-rpc/understudy/internal/testservice"
	"github.com/understudy-rpc/understudy/internal/wire"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/understudytest"
)

// journal is a service with a state: what it was given, in order.
type journal struct {
	mu     sync.Mutex // guards values: tests read them, too
	values []string
}

func (j *journal) Snapshot() (func(io.Writer) error, error) {
	b, err := json.Marshal(j.read())
	return func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	}, err
}

func (j *journal) Restore(r io.Reader) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.values = nil
	return json.NewDecoder(r).Decode(&j.values)
}

func (j *journal) add(value string) int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.values = append(j.values, value)
	return int64(len(j.values))
}

func (j *journal) read() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.values)
}

const write = "/test.Journal/Write"

var journalDesc = testservice.Describe("test.Journal", testservice.Unary("Write",
	func(j interface{ add(string) int64 }, _ context.Context, value *wrapperspb.StringValue) (
		*wrapperspb.Int64Value, error,
	) {
		return wrapperspb.Int64(j.add(value.GetValue())), nil
	}))

// verbose shows what replicas and clients log.
var verbose = slog.New(slog.DiscardHandler)

func init() {
	if os.Getenv("UNDERSTUDY_LOG") != "" {
		verbose = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
}

func registerJournal(s grpc.ServiceRegistrar) replica.Snapshotter {
	j := &journal{}
	s.RegisterService(&journalDesc, j)
	return j
}

// siege is three replicas, a client that keeps the rules, and one that doesn't. Replica 0 leads at
// first.
type siege struct {
	trailer metadata.MD // of the last follower's stream
	t       *testing.T
	c       *understudytest.Cluster
	good    *grpc.ClientConn
	wrote   []string // by both, so far

	// Of the hostile client.
	conns                 []*grpc.ClientConn // to each replica
	nonce                 []byte
	session, group, epoch uint64
	token                 uint64
	method                string // what its RPCs call
	attached              stream // to the primary
	inMessage             bool   // RPCs carry their headers in the message
}

type stream = grpc.BidiStreamingClient[pb.AttachRequest, pb.AttachResponse]

func besiege(t *testing.T, opts ...understudytest.Option) *siege {
	t.Helper()
	return besiegeService(t, registerJournal, opts...)
}

// besiegeService is besiege with another service, whose state is a journal, too.
func besiegeService(
	t *testing.T, register func(grpc.ServiceRegistrar) replica.Snapshotter, opts ...understudytest.Option,
) *siege {
	t.Helper()
	s := &siege{
		t: t, c: understudytest.New(t, 3, register,
			append([]understudytest.Option{understudytest.Logger(verbose)}, opts...)...),
		nonce: []byte("the hostile one."), method: write,
	}
	s.good = s.c.Dial("good")
	s.serves()
	for i := range 3 {
		s.conns = append(s.conns, s.dial("hostile", fmt.Sprintf("replica%d:1", i)))
	}
	var w *pb.Welcome
	s.attached, w = s.attach(0, &pb.Hello{Protocol: wire.Protocol, Nonce: s.nonce})
	s.session, s.token, s.group, s.epoch = w.Session, w.Token, w.Group, w.Primary.Epoch
	return s
}

// dial connects to an address as anybody can.
func (s *siege) dial(from, addr string) *grpc.ClientConn {
	s.t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(s.c.Network().Dialer(from)))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// serves checks that the group goes on: a good call is executed, and the replicas that run agree.
func (s *siege) serves() {
	s.t.Helper()
	s.servesOn(0, 1, 2)
}

// servesOn is serves when only these replicas run.
func (s *siege) servesOn(replicas ...int) {
	s.t.Helper()
	v := fmt.Sprint("good ", len(s.wrote))
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	n := new(wrapperspb.Int64Value)
	if err := s.good.Invoke(ctx, write, wrapperspb.String(v), n); err != nil {
		s.t.Fatalf("a good call: %v", err)
	}
	s.wrote = append(s.wrote, v)
	if n.Value != int64(len(s.wrote)) {
		s.t.Errorf("a good call was number %d, want %d", n.Value, len(s.wrote))
	}
	s.agree(replicas...)
}

// agree checks that replicas have executed what was written, and no more.
func (s *siege) agree(replicas ...int) {
	s.t.Helper()
	s.c.AwaitExecuted()
	for _, i := range replicas {
		if got := s.c.State(i).(*journal).read(); !slices.Equal(got, s.wrote) {
			s.t.Errorf("replica %d has %q, want %q", i, got, s.wrote)
		}
	}
}

// open opens a stream to a replica, and says nothing on it.
func (s *siege) open(i int) stream {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	s.t.Cleanup(cancel)
	st, err := pb.NewConnectionClient(s.conns[i]).Attach(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	return st
}

// attach opens a stream to a replica, and waits for its welcome.
func (s *siege) attach(i int, hello *pb.Hello) (stream, *pb.Welcome) {
	s.t.Helper()
	st := s.open(i)
	say(s.t, st, &pb.AttachRequest{Hello: hello})
	resp, err := st.Recv()
	if err != nil || resp.GetWelcome() == nil {
		s.t.Fatalf("got %v, %v, want a welcome", resp, err)
	}
	if w := resp.GetWelcome(); w.Session == s.session && w.Token != s.token {
		s.t.Errorf("replica %d welcomes session %d with token %x, the one before with %x", i, w.Session, w.Token,
			s.token)
	}
	return st, resp.GetWelcome()
}

// mine attaches the hostile client's own session.
func (s *siege) mine(i int) stream {
	s.t.Helper()
	st, _ := s.attach(i, &pb.Hello{Protocol: wire.Protocol, Nonce: s.nonce, Session: s.session, Group: s.group})
	return st
}

func say(t *testing.T, st stream, req *pb.AttachRequest) {
	t.Helper()
	if err := st.Send(req); err != nil && !errors.Is(err, io.EOF) { // EOF: Recv has the reason
		t.Fatal(err)
	}
}

// ends checks how a stream ends.
func ends(t *testing.T, what string, st stream, code codes.Code, words ...string) {
	t.Helper()
	for {
		if _, err := st.Recv(); err != nil {
			wants(t, what, err, code, words...)
			return
		}
	}
}

// refuses checks whether a stream has ended with a replica's own word for it.
func refuses(t *testing.T, what string, trailer metadata.MD, want pb.Refusal) {
	t.Helper()
	if got := wire.RefusalIn(trailer.Get(wire.HeaderKey)); got != want {
		t.Errorf("%s: the trailer has %v, want %v", what, got, want)
	}
}

// header is one that a good client would send.
func (s *siege) header(seqNum uint64) *pb.Header {
	return &pb.Header{Session: s.session, SeqNum: seqNum, Outstanding: 1, DestEpoch: s.epoch, Token: s.token}
}

func marshalHeader(h *pb.Header) (string, error) {
	b, err := proto.Marshal(h)
	return string(b), err
}

// call sends an RPC to a replica under a header, and returns the one in the reply.
func (s *siege) call(i int, h *pb.Header, value string) (*pb.Header, error) {
	s.t.Helper()
	v, err := marshalHeader(h)
	if err != nil {
		s.t.Fatal(err)
	}
	b, err := proto.Marshal(wrapperspb.String(value))
	if err != nil {
		s.t.Fatal(err)
	}
	return s.raw(i, b, v)
}

// raw sends an RPC with whatever bytes under whatever headers.
func (s *siege) raw(i int, payload []byte, headers ...string) (*pb.Header, error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	for _, h := range headers {
		if s.inMessage {
			payload = append(protowire.AppendString(protowire.AppendTag(nil, protowire.MaxValidNumber,
				protowire.BytesType), h), payload...)
		} else {
			ctx = metadata.AppendToOutgoingContext(ctx, wire.HeaderKey, h)
		}
	}
	var trailer metadata.MD
	var reply []byte
	err := s.conns[i].Invoke(ctx, s.method, payload, &reply, grpc.ForceCodec(bytesCodec{}), grpc.Trailer(&trailer))
	header, _, parseErr := wire.CutHeader(reply)
	if inMessage := header != nil; err == nil && inMessage != s.inMessage {
		s.t.Errorf("the header of a reply is in its message: %v", inMessage)
	}
	if values := trailer.Get(wire.HeaderKey); len(values) > 0 {
		header = []byte(values[0])
	}
	if header == nil {
		return nil, err
	}
	h := new(pb.Header)
	if parseErr == nil {
		parseErr = proto.Unmarshal(header, h)
	}
	if parseErr != nil {
		s.t.Errorf("the reply's header: %v", parseErr)
	}
	return h, err
}

// writes makes one good call of the hostile client.
func (s *siege) writes(seqNum uint64, value string) *pb.Header {
	s.t.Helper()
	h, err := s.call(0, s.header(seqNum), value)
	if err != nil || h.GetOrderNum() == 0 {
		s.t.Fatalf("got %v, %v", h, err)
	}
	s.wrote = append(s.wrote, value)
	return h
}

// bytesCodec sends bytes as they are.
type bytesCodec struct{}

func (bytesCodec) Marshal(v any) ([]byte, error) { return v.([]byte), nil }
func (bytesCodec) Unmarshal(b []byte, v any) error {
	*v.(*[]byte) = slices.Clone(b)
	return nil
}
func (bytesCodec) Name() string { return "proto" }

// wants checks an error's code, and what its text must tell the user.
func wants(t *testing.T, what string, err error, code codes.Code, words ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("%s: got %v, want %v", what, err, code)
	}
	mentions(t, what, err, words...)
}

func mentions(t *testing.T, what string, err error, words ...string) {
	t.Helper()
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("%s: the error %v doesn't mention %q", what, err, w)
		}
	}
}
