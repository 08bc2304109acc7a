package simulation

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/internal/testservice"
	"github.com/understudy-rpc/understudy/internal/turn"
	"github.com/understudy-rpc/understudy/replica"
)

// Cells is the state of each workload: counters, registers, or the accounts of a bank.
type Cells [4]int64

// opening is what each account of the bank begins with.
const opening = 100

// Request is one call. ID is the call's own, so that the ledger shows each execution.
type Request struct {
	ID   string
	Op   string
	Cell int
	Read bool   `json:",omitempty"` // by the read-only method; Op is read or audit
	A, B int64  `json:",omitempty"`
	Pad  string `json:",omitempty"` // makes it large
}

// Result is what a caller learns of the cells. OK is false where cas or transfer changed nothing.
type Result struct {
	OK    bool  `json:",omitempty"`
	Value int64 `json:",omitempty"`
	Cells Cells
}

// Apply is the service: the replicas execute it, and porcupine's model is made of it.
func (c Cells) Apply(r Request) (Cells, Result) {
	switch r.Op {
	case "add":
		c[r.Cell] += r.A
		return c, Result{OK: true, Value: c[r.Cell]}
	case "write":
		c[r.Cell] = r.A
		return c, Result{OK: true}
	case "read":
		return c, Result{OK: true, Value: c[r.Cell]}
	case "cas":
		if c[r.Cell] != r.A {
			return c, Result{Value: c[r.Cell]}
		}
		c[r.Cell] = r.B
		return c, Result{OK: true, Value: r.B}
	case "transfer": // B from Cell to A
		if c[r.Cell] < r.B {
			return c, Result{}
		}
		c[r.Cell] -= r.B
		c[r.A] += r.B
		return c, Result{OK: true}
	case "audit":
		return c, Result{OK: true, Cells: c}
	default:
		panic("simulation: unknown op " + r.Op)
	}
}

// Entry is one turn, as a replica executed it.
type Entry struct {
	OrderNum uint64
	Request  Request
	Result   Result
	Now      int64 // understudy.Now, in microseconds
	Rand     int64 // a draw of understudy.Rand
}

func (e Entry) seen() Seen { return Seen{e.OrderNum, e.Now, e.Rand} }

// Reply is what the caller has of an Entry: in the message, or in the details of an error; the
// trailer repeats OrderNum, and the header Rand. What is read has no Entry: then Place is that of
// the last one that was seen, 0 if there was none, and Saw says which it was: no other has its
// Rand.
type Reply struct {
	Place    int // in the ledger, from 1
	Saw      Seen
	OrderNum uint64
	Result   Result
	Now      int64
	Rand     int64
}

// Seen is the last Entry that a read has seen.
type Seen struct {
	OrderNum  uint64
	Now, Rand int64
}

// Service is one replica's state: the cells, and all that it has executed.
type Service struct {
	halfway time.Duration // that a turn, or a read, pauses halfway, so that one shows that isn't alone

	mu     sync.Mutex // the checks read it, too
	Cells  Cells
	Ledger []Entry
}

// Register is an understudytest.Register for a plan. The service has a read-only method only if the
// plan calls it: a takeover at Stable waits for sessions then.
func Register(p Plan) func(grpc.ServiceRegistrar) replica.Snapshotter {
	return func(r grpc.ServiceRegistrar) replica.Snapshotter {
		s := &Service{Cells: p.opening()}
		r.RegisterService(&serviceDesc, s)
		if p.Reads > 0 {
			s.halfway = 20 * time.Microsecond
			r.RegisterService(&readerDesc, s)
		}
		return s
	}
}

// do is the handler of what is ordered.
func (s *Service) do(ctx context.Context, in string) (string, error) {
	e := Entry{Now: understudy.Now(ctx).UnixMicro(), Rand: understudy.Rand(ctx).Int64()}
	if t := turn.FromContext(ctx); t != nil {
		e.OrderNum = uint64(t.OrderNum())
	}
	if err := json.Unmarshal([]byte(in), &e.Request); err != nil {
		return "", status.Error(codes.InvalidArgument, err.Error())
	}
	e.Request.Pad = ""
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Cells, e.Result = s.Cells.Apply(e.Request)
	s.pause()
	s.Ledger = append(s.Ledger, e)
	out, err := answer(ctx,
		Reply{Place: len(s.Ledger), OrderNum: e.OrderNum, Result: e.Result, Now: e.Now, Rand: e.Rand})
	if err != nil {
		return "", err
	}
	if e.Request.Op == "transfer" && !e.Result.OK {
		st, err := status.New(codes.FailedPrecondition,
			"too little is on the account").WithDetails(wrapperspb.String(out))
		if err != nil {
			return "", err
		}
		return "", st.Err()
	}
	return out, nil
}

// read is the handler of what is read-only.
func (s *Service) read(ctx context.Context, in string) (string, error) {
	var r Request
	if err := json.Unmarshal([]byte(in), &r); err != nil {
		return "", status.Error(codes.InvalidArgument, err.Error())
	}
	said := Reply{Now: understudy.Now(ctx).UnixMicro(), Rand: understudy.Rand(ctx).Int64()}
	if t := turn.FromContext(ctx); t != nil {
		said.OrderNum = uint64(t.OrderNum())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if said.Place = len(s.Ledger); said.Place > 0 {
		said.Saw = s.Ledger[said.Place-1].seen()
	}
	s.pause()
	_, said.Result = s.Cells.Apply(r)
	return answer(ctx, said)
}

// pause lets others run. Called with mu held, which it gives up meanwhile: it is the library's to
// run nothing else.
func (s *Service) pause() {
	if s.halfway > 0 {
		s.mu.Unlock()
		time.Sleep(s.halfway) // fake
		s.mu.Lock()
	}
}

// answer makes what a caller is given.
func answer(ctx context.Context, said Reply) (string, error) {
	out, err := json.Marshal(said)
	if err == nil {
		err = grpc.SetHeader(ctx, metadata.Pairs("rand", strconv.FormatInt(said.Rand, 10)))
	}
	if err == nil {
		err = grpc.SetTrailer(ctx, metadata.Pairs("order", strconv.FormatUint(said.OrderNum, 10)))
	}
	return string(out), err
}

// image is a Service as it is transferred.
type image struct {
	Cells  Cells
	Ledger []Entry
}

// Snapshot implements replica.Snapshotter.
func (s *Service) Snapshot() (func(io.Writer) error, error) {
	i := s.image()
	return func(w io.Writer) error { return json.NewEncoder(w).Encode(i) }, nil
}

// Restore implements replica.Snapshotter.
func (s *Service) Restore(r io.Reader) error {
	var i image
	if err := json.NewDecoder(r).Decode(&i); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Cells, s.Ledger = i.Cells, i.Ledger
	return nil
}

func (s *Service) image() image {
	s.mu.Lock()
	defer s.mu.Unlock()
	return image{s.Cells, slices.Clone(s.Ledger)}
}

type server interface {
	do(ctx context.Context, in string) (string, error)
	read(ctx context.Context, in string) (string, error)
}

const (
	method     = "/simulation.Service/Do"
	readMethod = "/simulation.Reader/Read"
)

// Two services, so that a group without read-only methods is tested, too.
var (
	serviceDesc = testservice.Describe("simulation.Service", unary("Do", server.do))
	readerDesc  = testservice.Describe("simulation.Reader", unary("Read", server.read).ReadOnly())
)

func unary(name string, handle func(s server, ctx context.Context, in string) (string, error)) testservice.Method {
	return testservice.Unary(name,
		func(s server, ctx context.Context, in *wrapperspb.StringValue) (*wrapperspb.StringValue, error) {
			out, err := handle(s, ctx, in.GetValue())
			return wrapperspb.String(out), err
		})
}

// Invoke makes one call, and returns the service's reply, if there is one: an error of the
// service's own is a reply, too.
func Invoke(ctx context.Context, conn grpc.ClientConnInterface, r Request, opts ...grpc.CallOption) (*Reply, error) {
	in, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	method := method
	if r.Read {
		method = readMethod
	}
	var header, trailer metadata.MD
	out := new(wrapperspb.StringValue)
	err = conn.Invoke(ctx, method, wrapperspb.String(string(in)), out,
		append(opts, grpc.Header(&header), grpc.Trailer(&trailer))...)
	text := out.GetValue()
	if err != nil {
		text = "" // a reply that came, and wasn't accepted
		for _, d := range status.Convert(err).Details() {
			if s, ok := d.(*wrapperspb.StringValue); ok && status.Code(err) == codes.FailedPrecondition {
				text = s.GetValue()
			}
		}
		if text == "" {
			return nil, err
		}
	}
	reply := &Reply{}
	if err := json.Unmarshal([]byte(text), reply); err != nil {
		return nil, fmt.Errorf("a reply that isn't the service's: %w", err)
	}
	if got := header.Get("rand"); !slices.Equal(got, []string{strconv.FormatInt(reply.Rand, 10)}) {
		return nil, fmt.Errorf("the header has rand %q, the reply %d", got, reply.Rand)
	}
	if got := trailer.Get("order"); !slices.Equal(got, []string{strconv.FormatUint(reply.OrderNum, 10)}) {
		return nil, fmt.Errorf("the trailer has order %q, the reply %d", got, reply.OrderNum)
	}
	return reply, nil
}
