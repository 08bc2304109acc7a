package transport

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"

	"google.golang.org/grpc/attributes"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/status"

	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// This file is the only one that uses gRPC's experimental packages resolver and balancer.

// policy is the name of our load-balancing policy: one connection to each replica, chosen by its
// name.
const policy = "understudy"

func init() {
	balancer.Register(policyBuilder{})
	resolver.Register(bareScheme{})
}

// bareScheme stands for the scheme's resolver in a ClientConn that has none of ours, to say what is
// missing.
type bareScheme struct{}

func (bareScheme) Scheme() string { return Scheme }

func (bareScheme) Build(resolver.Target, resolver.ClientConn, resolver.BuildOptions) (resolver.Resolver, error) {
	return nil, errBare
}

// choice is a context that says which replica a call goes to.
type choice struct {
	context.Context
	// name is the replica's; with any, the one that is preferred.
	name string
	// any: whichever replica has a connection.
	any bool
	// wait: until there is a connection, instead of failing at once.
	wait bool
	// picked is set when the call may have been sent.
	picked atomic.Bool
}

type choiceKey struct{}

// in makes it a child of a context. It is called once.
func (ch *choice) in(ctx context.Context) context.Context {
	ch.Context = ctx
	return ch
}

// Value implements context.Context.
func (ch *choice) Value(key any) any {
	if key == (choiceKey{}) {
		return ch
	}
	return ch.Context.Value(key)
}

func choiceOf(ctx context.Context) *choice {
	ch, _ := ctx.Value(choiceKey{}).(*choice)
	return ch
}

// serviceConfig merges the user's with our policy. Our streams live long: what the user sets for
// all methods doesn't hold for them.
func serviceConfig(user string) (string, error) {
	merged := map[string]any{}
	if user != "" {
		if err := json.Unmarshal([]byte(user), &merged); err != nil {
			return "", fmt.Errorf("transport: WithServiceConfig: %w", err)
		}
	}
	for _, key := range []string{"loadBalancingConfig", "loadBalancingPolicy"} {
		if _, ok := merged[key]; ok {
			return "", fmt.Errorf("transport: WithServiceConfig: %s would replace Understudy's own policy", key)
		}
	}
	methods, ok := merged["methodConfig"].([]any)
	if _, given := merged["methodConfig"]; given && !ok {
		return "", errors.New("transport: WithServiceConfig: methodConfig isn't a list")
	}
	merged["methodConfig"] = append(methods,
		map[string]any{"name": []any{map[string]any{"service": pb.Connection_ServiceDesc.ServiceName}}})
	merged["loadBalancingConfig"] = []any{map[string]any{policy: map[string]any{}}}
	b, err := json.Marshal(merged)
	return string(b), err
}

// resolverBuilder gives one ClientConn its Client's replicas. It stands in for dns and passthrough
// too: gRPC chooses these when it can't parse a target as a URL, as with a list of IPv6 addresses.
type resolverBuilder struct {
	client *Client
	scheme string
}

func resolvers(c *Client) []resolver.Builder {
	return []resolver.Builder{resolverBuilder{c, Scheme}, resolverBuilder{c, "dns"}, resolverBuilder{c, "passthrough"}}
}

func (b resolverBuilder) Scheme() string { return b.scheme }

func (b resolverBuilder) target(t resolver.Target) (Target, error) {
	if t.URL.Scheme == Scheme {
		return ParseTarget(Scheme + "://" + t.URL.Host + "/" + t.Endpoint())
	}
	return ParseTarget(t.Endpoint())
}

// OverrideAuthority makes the group's name the connection's authority.
func (b resolverBuilder) OverrideAuthority(t resolver.Target) string {
	target, err := b.target(t)
	if err != nil {
		return t.Endpoint()
	}
	return target.Group
}

func (b resolverBuilder) Build(
	t resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions,
) (resolver.Resolver, error) {
	target, err := b.target(t)
	if err == nil {
		err = b.client.open(target, func(all []address) error { return publish(b.client, cc, all) })
	} else {
		b.client.life.fail(err)
	}
	if err != nil {
		return nil, err
	}
	return groupResolver{b.client}, nil
}

// groupResolver ends the Client: gRPC closes it with the ClientConn.
type groupResolver struct{ client *Client }

func (groupResolver) ResolveNow(resolver.ResolveNowOptions) {}
func (r groupResolver) Close()                              { r.client.close() }

// address is where one replica is reached, on the how-manieth connection: who wants another one
// says a higher number.
type address struct {
	name, addr string
	connection int
}

// roster is the resolver state's attribute by which a balancer finds its Client, and whom the
// state's endpoints are.
type roster struct {
	client *Client
	all    []address
}

// Equal is for package attributes: each roster is another.
func (r *roster) Equal(other any) bool { return other == any(r) }

type rosterKey struct{}

// publish tells gRPC the replicas, and returns when the load-balancing policy has them.
func publish(c *Client, cc resolver.ClientConn, all []address) error {
	r := &roster{client: c, all: all}
	state := resolver.State{Attributes: attributes.New(rosterKey{}, r)}
	for _, a := range all {
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: a.addr}}})
	}
	if state.Endpoints == nil {
		state.Endpoints = []resolver.Endpoint{}
	}
	return cc.UpdateState(state)
}

type policyBuilder struct{}

func (policyBuilder) Name() string { return policy }

func (policyBuilder) Build(cc balancer.ClientConn, _ balancer.BuildOptions) balancer.Balancer {
	return &replicaBalancer{cc: cc, conns: map[string]*replicaConn{}, next: map[string]*replicaConn{}}
}

// replicaBalancer keeps one connection to each replica. gRPC calls it from one goroutine at a time.
type replicaBalancer struct {
	cc     balancer.ClientConn
	client *Client // of the first roster
	conns  map[string]*replicaConn
	next   map[string]*replicaConn // to take the place of one that says nothing, once it is there
}

type replicaConn struct {
	address
	sub   balancer.SubConn
	state connectivity.State
	err   error // of the last attempt to connect
}

func (b *replicaBalancer) UpdateClientConnState(s balancer.ClientConnState) error {
	r, ok := s.ResolverState.Attributes.Value(rosterKey{}).(*roster)
	if !ok || len(r.all) != len(s.ResolverState.Endpoints) {
		return errors.New("transport: the load-balancing policy " + policy + " serves interceptor.DialOptions only")
	}
	b.client = r.client
	listed := map[string]bool{}
	for i, a := range r.all {
		listed[a.name] = true
		if err := b.connect(a, s.ResolverState.Endpoints[i].Addresses[0]); err != nil {
			return err
		}
	}
	for name, conn := range b.conns {
		if !listed[name] {
			b.drop(name, conn)
		}
	}
	b.publish()
	r.client.life.balanced()
	return nil
}

// connect makes the connection to a replica: in place of the one to an earlier address of its at
// once, in place of one that says nothing when it is there, since that one may speak again before.
func (b *replicaBalancer) connect(a address, addr resolver.Address) error {
	name, in := a.name, b.conns
	if old := b.conns[name]; old != nil {
		switch {
		case old.addr != a.addr:
			b.drop(name, old)
		case old.connection == a.connection:
			return nil
		case b.next[name] != nil || old.state != connectivity.Ready: // it is being made
			old.connection = a.connection
			return nil
		default:
			old.connection, in = a.connection, b.next
		}
	}
	conn := &replicaConn{address: a, state: connectivity.Connecting}
	//lint:ignore SA1019 it says only that SubConns will have one address each, as ours do
	sub, err := b.cc.NewSubConn([]resolver.Address{addr}, balancer.NewSubConnOptions{
		StateListener: func(s balancer.SubConnState) { b.changed(name, conn, s) },
	})
	if err != nil {
		return err
	}
	conn.sub = sub
	in[name] = conn
	sub.Connect()
	return nil
}

// drop ends the connections to a replica. What is under way there isn't cut off by this.
func (b *replicaBalancer) drop(name string, conn *replicaConn) {
	conn.sub.Shutdown()
	delete(b.conns, name)
	if next := b.next[name]; next != nil {
		next.sub.Shutdown()
		delete(b.next, name)
	}
}

// replace puts the next connection to a replica in the place of the present one.
func (b *replicaBalancer) replace(name string) {
	old, next := b.conns[name], b.next[name]
	delete(b.next, name)
	next.connection = old.connection
	b.conns[name] = next
	old.sub.Shutdown()
	b.publish()
}

// changed keeps every connection connected: idle is where gRPC puts one that was lost, or whose
// backoff is over.
func (b *replicaBalancer) changed(name string, conn *replicaConn, s balancer.SubConnState) {
	if s.ConnectivityState == connectivity.Shutdown || b.conns[name] != conn && b.next[name] != conn {
		return
	}
	before := conn.state
	conn.state = s.ConnectivityState
	if s.ConnectionError != nil {
		conn.err = s.ConnectionError
	}
	if s.ConnectionError != nil || conn.state == connectivity.Ready {
		b.client.reached(name, conn.addr, s.ConnectionError)
	}
	if conn.state == connectivity.Idle {
		conn.sub.Connect()
		conn.state = connectivity.Connecting
	}
	switch {
	case b.next[name] == conn:
		if conn.state == connectivity.Ready {
			b.replace(name)
			b.client.reconnected(name)
		}
		return
	case b.next[name] != nil && conn.state != connectivity.Ready: // the old one is lost, and made anew at once
		b.next[name].sub.Shutdown()
		delete(b.next, name)
	}
	if conn.state != before || s.ConnectionError != nil { // each picker wakes whoever waits for a connection
		b.publish()
	}
}

func (b *replicaBalancer) publish() {
	p := picker{conns: make(map[string]replicaConn, len(b.conns))}
	overall := connectivity.TransientFailure
	if len(b.conns) == 0 {
		overall = connectivity.Connecting
	}
	for name, conn := range b.conns {
		p.conns[name] = *conn
		switch {
		case conn.state == connectivity.Ready:
			overall = connectivity.Ready
		case conn.state == connectivity.Connecting && overall != connectivity.Ready:
			overall = connectivity.Connecting
		}
	}
	b.cc.UpdateState(balancer.State{ConnectivityState: overall, Picker: p})
}

func (b *replicaBalancer) ResolverError(error) {}

func (b *replicaBalancer) UpdateSubConnState(balancer.SubConn, balancer.SubConnState) {}

func (b *replicaBalancer) ExitIdle() {
	for _, conn := range b.conns {
		conn.sub.Connect()
	}
}

func (b *replicaBalancer) Close() {}

// picker is one immutable view of the connections.
type picker struct{ conns map[string]replicaConn }

func (p picker) Pick(info balancer.PickInfo) (balancer.PickResult, error) {
	ch := choiceOf(info.Ctx)
	if ch == nil {
		return balancer.PickResult{},
			status.Error(codes.Internal, "understudy: a call that didn't pass Understudy's interceptor")
	}
	conn, known := p.conns[ch.name]
	switch {
	case conn.state == connectivity.Ready && known:
	case ch.any:
		return p.any(ch)
	case ch.wait:
		return balancer.PickResult{}, balancer.ErrNoSubConnAvailable
	case !known:
		return balancer.PickResult{},
			status.Errorf(codes.Unavailable, "understudy: no address of replica %s is known", ch.name)
	default: // a dead replica's calls fail at once
		return balancer.PickResult{},
			status.Errorf(codes.Unavailable, "understudy: no connection to replica %s at %s: %v", ch.name, conn.addr,
				conn.err)
	}
	ch.picked.Store(true)
	return balancer.PickResult{SubConn: conn.sub}, nil
}

// any is for unreplicated services, with gRPC's usual rules: while something may come of it the
// call waits; else it fails, unless it has WaitForReady.
func (p picker) any(ch *choice) (balancer.PickResult, error) {
	err := balancer.ErrNoSubConnAvailable
	if len(p.conns) > 0 {
		err = errors.New("understudy: no connection to any replica")
	}
	for _, conn := range p.conns {
		switch conn.state {
		case connectivity.Ready:
			ch.picked.Store(true)
			return balancer.PickResult{SubConn: conn.sub}, nil
		case connectivity.Connecting:
			err = balancer.ErrNoSubConnAvailable
		}
	}
	return balancer.PickResult{}, err
}
