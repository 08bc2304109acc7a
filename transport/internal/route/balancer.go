package route

import (
	"errors"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"
)

func init() { balancer.Register(policyBuilder{}) }

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

func (b *replicaBalancer) UpdateClientConnState(s balancer.ClientConnState) error {
	r, ok := s.ResolverState.Attributes.Value(rosterKey{}).(*roster)
	if !ok || len(r.all) != len(s.ResolverState.Endpoints) {
		return errors.New("transport: the load-balancing policy " + policy + " serves interceptor.DialOptions only")
	}
	b.client = r.client
	listed := map[string]bool{}
	for i, a := range r.all {
		listed[a.Name] = true
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
	r.client.Balanced()
	return nil
}

// connect makes the connection to a replica: in place of the one to an earlier address of its at
// once, in place of one that says nothing when it is there, since that one may speak again before.
func (b *replicaBalancer) connect(a Address, addr resolver.Address) error {
	name, in := a.Name, b.conns
	if old := b.conns[name]; old != nil {
		switch {
		case old.Addr != a.Addr:
			b.drop(name, old)
		case old.Connection == a.Connection:
			return nil
		case b.next[name] != nil || old.state != connectivity.Ready: // it is being made
			old.Connection = a.Connection
			return nil
		default:
			old.Connection, in = a.Connection, b.next
		}
	}
	conn := &replicaConn{Address: a, state: connectivity.Connecting}
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
	next.Connection = old.Connection
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
		b.client.Reached(name, conn.Addr, s.ConnectionError)
	}
	if conn.state == connectivity.Idle {
		conn.sub.Connect()
		conn.state = connectivity.Connecting
	}
	switch {
	case b.next[name] == conn:
		if conn.state == connectivity.Ready {
			b.replace(name)
			b.client.Reconnected(name)
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
