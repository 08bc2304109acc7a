package replica

import (
	"context"
	"fmt"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/understudy-rpc/understudy/internal/wire"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/replica/internal/machine"
)

// Registrar returns the registrar with which replicated services are registered; what it registers
// goes to s, with a turn around each handler. inTurn are interceptors that run inside every
// replica's turn, the first outermost: they must keep the determinism contract. Interceptors of s
// itself run once, where a call arrives.
//
// A method with option idempotency_level = NO_SIDE_EFFECTS is read-only: the primary alone executes
// it, between turns, concurrently with others of that kind, and nothing of it is ordered or logged.
// What it replies is linearizable. It must not change the state. That holds for clients that link
// the method's descriptor, too; to others it is a method like any.
//
// Call it, and register, before Serve, and before s serves any other listener. A streaming method
// is Unimplemented for now.
func (r *Replica) Registrar(s grpc.ServiceRegistrar, inTurn ...grpc.UnaryServerInterceptor) grpc.ServiceRegistrar {
	g := &registrar{r: r, s: s, inTurn: machine.ChainInTurn(inTurn)}
	registered := g.registered()
	_, connected := registered[pb.Connection_ServiceDesc.ServiceName]
	g.another = connected && !r.served.connected
	// not in Serve: gRPC ends a process that registers after the server has begun with another
	// listener
	if !connected && (registered != nil || !r.served.connected) {
		s.RegisterService(&pb.Connection_ServiceDesc, &connection{r: r})
		r.served.connected = true
	}
	return g
}

type registrar struct {
	r      *Replica
	s      grpc.ServiceRegistrar
	inTurn grpc.UnaryServerInterceptor

	another bool // another replica has the server
}

// RegisterService implements grpc.ServiceRegistrar.
func (g *registrar) RegisterService(desc *grpc.ServiceDesc, impl any) {
	if !g.fits(desc.ServiceName) {
		return
	}
	d := *desc
	d.Methods = slices.Clone(desc.Methods)
	for i := range d.Methods {
		name := "/" + desc.ServiceName + "/" + desc.Methods[i].MethodName
		m := machine.NewMethod(name, impl, desc.Methods[i].Handler, g.inTurn)
		if !wire.ValidMethod(name) {
			g.r.served.isUnfit(fmt.Errorf(
				"replica: method %q can't be replicated: its name isn't UTF-8, or has more than %d bytes", name,
				wire.MaxMethod,
			))
		}
		d.Methods[i].Handler = g.r.wrap(m)
		g.r.app.Register(m)
	}
	d.Streams = slices.Clone(desc.Streams)
	for i := range d.Streams {
		name := "/" + desc.ServiceName + "/" + desc.Streams[i].StreamName
		d.Streams[i].Handler = func(any, grpc.ServerStream) error { return errStream(name) }
	}
	g.r.served.services[desc.ServiceName] = true
	if err := checkOptions(desc.ServiceName); err != nil {
		g.r.served.isUnfit(err)
	}
	g.s.RegisterService(&d, impl)
}

// fits says whether a service may be registered; where gRPC would end the process, or this replica
// would, Serve returns an error.
func (g *registrar) fits(service string) bool {
	r := g.r
	r.mu.Lock()
	serving, stop := r.serving, r.stop
	r.mu.Unlock()
	switch _, twice := g.registered()[service]; {
	case serving:
		stop(fmt.Errorf("replica: service %s was registered after Serve was called: register all services before",
			service))
	case g.another:
		r.served.isUnfit(
			fmt.Errorf(
				"replica: service %s is registered on a server that serves another replica: each replica needs a "+
					"grpc.Server of its own", service,
			),
		)
	case twice:
		r.served.isUnfit(fmt.Errorf("replica: service %s is registered twice on one server", service))
	default:
		return true
	}
	return false
}

// registered are the services of the server, if that tells.
func (g *registrar) registered() map[string]grpc.ServiceInfo {
	if s, ok := g.s.(interface {
		GetServiceInfo() map[string]grpc.ServiceInfo
	}); ok {
		return s.GetServiceInfo()
	}
	return nil
}

// checkOptions finds method options of what isn't built yet: running such a method as if the option
// weren't there would break its promise.
func checkOptions(service string) error {
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		return nil // a service without a registered descriptor has no options either
	}
	sd, ok := found.(protoreflect.ServiceDescriptor)
	if !ok {
		return nil
	}
	for i := range sd.Methods().Len() {
		m := sd.Methods().Get(i)
		for _, o := range []protoreflect.ExtensionType{pb.E_Key, pb.E_OneWay} {
			if proto.HasExtension(m.Options(), o) {
				return fmt.Errorf("replica: method %s has option %s, which isn't supported yet", m.FullName(),
					o.TypeDescriptor().FullName())
			}
		}
	}
	return nil
}

// wrap puts the turn innermost, wherever the user lists interceptors: the generated handler calls
// what it is given as the interceptor with the user's handler as the last link of the chain.
func (r *Replica) wrap(m *machine.Method) grpc.MethodHandler {
	return func(_ any, ctx context.Context, dec func(any) error, interceptor grpc.UnaryServerInterceptor) (any,
		error) {
		if interceptor == nil {
			return nil, status.Error(codes.Internal,
				"understudy: the server was made without interceptor.ServerOptions")
		}
		c := &call{invocation: machine.Invocation{Method: m}, chain: interceptor}
		c.request.set(nil)
		c.request.header = &c.header
		if err := dec(&c.request); err != nil {
			return nil, err
		}
		if err := c.request.malformed; err != nil {
			return nil, errHeader(err)
		}
		defer c.exits(ctx)
		value, err := m.Through(context.WithValue(ctx, callKey{}, c), c.request.b, throughChain)
		c.returned = true
		return value, err
	}
}

// throughChain runs the server's chain around a call's turn.
func throughChain(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	c := callFrom(ctx)
	c.invocation.Req, c.invocation.Info, c.invocation.Handler = req, info, handler
	return c.chain(ctx, req, info, c.turn)
}
