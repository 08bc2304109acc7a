package machine

import (
	"context"
	"io"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/understudy-rpc/understudy/internal/clock"
	"github.com/understudy-rpc/understudy/internal/logs"
	"github.com/understudy-rpc/understudy/internal/wire"
)

// App is the application of one process: its methods, its state, and the turns that it takes. There
// is one state, so a turn that was taken in one life of the replica holds up the next life, too.
type App struct {
	state   State
	log     *logs.Logger
	clock   clock.Clock
	methods map[string]*Method
	reads   bool // some method is read-only
	turns   sequencer
}

// State is the application's state, a replica.Snapshotter; that is where its contract is.
type State interface {
	Snapshot() (write func(io.Writer) error, err error)
	Restore(io.Reader) error
}

// NewApp returns an application without methods.
func NewApp(state State, log *logs.Logger, clock clock.Clock) *App {
	return &App{state: state, log: log, clock: clock, methods: map[string]*Method{}}
}

// Register adds a method; all are registered before the first turn.
func (a *App) Register(m *Method) {
	a.methods[m.Name] = m
	a.reads = a.reads || m.Reads
}

// Reads says whether some method is read-only.
func (a *App) Reads() bool { return a.reads }

// Method returns the method of a full name; nil if none was registered.
func (a *App) Method(name string) *Method { return a.methods[name] }

// Executes names what the turn executes: a method, or what is done with the state; empty if it
// executes nothing.
func (a *App) Executes() string { return a.turns.executes() }

// Watch returns a function that names the method of a turn which was executing already when it was
// called the last time.
func (a *App) Watch() (slow func() (method string, ok bool)) { return a.turns.watch() }

// SlowReads names the read-only methods that were executing already when it was called the last
// time but one, and says how many turns and reads wait.
func (a *App) SlowReads() (methods []string, waiting int) { return a.turns.slowReads() }

// Method is a unary method of a replicated service.
type Method struct {
	Name  string // the full one
	Reads bool   // declared to have no side effects

	service any
	handle  grpc.MethodHandler // the generated one
	inTurn  grpc.UnaryServerInterceptor
}

// NewMethod returns the method with a full name that service implements; inTurn runs in each of its
// turns, on every replica ([ChainInTurn]).
func NewMethod(name string, service any, handle grpc.MethodHandler, inTurn grpc.UnaryServerInterceptor) *Method {
	return &Method{Name: name, Reads: wire.ReadOnly(name), service: service, handle: handle, inTurn: inTurn}
}

// Through unmarshals a request, and calls the chain with it, around the handler.
func (m *Method) Through(ctx context.Context, request []byte, chain grpc.UnaryServerInterceptor) (any, error) {
	return m.handle(m.service, ctx, unmarshal(request), chain)
}

func unmarshal(b []byte) func(any) error {
	return func(v any) error {
		m, ok := v.(proto.Message)
		if !ok {
			return status.Errorf(codes.Internal, "understudy: a request of type %T is no protobuf message", v)
		}
		if err := proto.Unmarshal(b, m); err != nil {
			return status.Errorf(codes.Internal, "understudy: the request can't be unmarshalled: %v", err)
		}
		return nil
	}
}

// ChainInTurn makes one interceptor of those that run in every replica's turn, the first outermost.
func ChainInTurn(all []grpc.UnaryServerInterceptor) grpc.UnaryServerInterceptor {
	if len(all) == 0 { // calls pay for none
		return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			return handler(ctx, req)
		}
	}
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		next := handler
		for _, i := range slices.Backward(all) {
			inner := next
			next = func(ctx context.Context, req any) (any, error) { return i(ctx, req, info, inner) }
		}
		return next(ctx, req)
	}
}
