package route

import (
	"errors"

	"google.golang.org/grpc/attributes"
	"google.golang.org/grpc/resolver"
)

func init() { resolver.Register(bareScheme{}) }

// errBare is for a ClientConn with our scheme, and without our options.
var errBare = errors.New("transport: a target of the scheme " + Scheme +
	" needs interceptor.DialOptions() among the options of grpc.NewClient")

// bareScheme stands for the scheme's resolver in a ClientConn that has none of ours, to say what is
// missing.
type bareScheme struct{}

func (bareScheme) Scheme() string { return Scheme }

func (bareScheme) Build(resolver.Target, resolver.ClientConn, resolver.BuildOptions) (resolver.Resolver, error) {
	return nil, errBare
}

// resolverBuilder gives one ClientConn its Client's replicas. It stands in for dns and passthrough
// too: gRPC chooses these when it can't parse a target as a URL, as with a list of IPv6 addresses.
type resolverBuilder struct {
	client *Client
	scheme string
}

// Resolvers are for grpc.WithResolvers, in the ClientConn that the Client serves.
func Resolvers(c *Client) []resolver.Builder {
	return []resolver.Builder{resolverBuilder{c, Scheme}, resolverBuilder{c, "dns"}, resolverBuilder{c, "passthrough"}}
}

func (b resolverBuilder) Scheme() string { return b.scheme }

// written is the target as the program has written it.
func (b resolverBuilder) written(t resolver.Target) string {
	if t.URL.Scheme == Scheme {
		return Scheme + "://" + t.URL.Host + "/" + t.Endpoint()
	}
	return t.Endpoint()
}

// OverrideAuthority makes the group's name the connection's authority.
func (b resolverBuilder) OverrideAuthority(t resolver.Target) string {
	group, err := b.client.Group(b.written(t))
	if err != nil {
		return t.Endpoint()
	}
	return group
}

func (b resolverBuilder) Build(
	t resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions,
) (resolver.Resolver, error) {
	err := b.client.Open(b.written(t), func(all []Address) error { return publish(b.client, cc, all) })
	if err != nil {
		return nil, err
	}
	return groupResolver{b.client}, nil
}

// groupResolver ends the Client: gRPC closes it with the ClientConn.
type groupResolver struct{ client *Client }

func (groupResolver) ResolveNow(resolver.ResolveNowOptions) {}
func (r groupResolver) Close()                              { r.client.Close() }

// roster is the resolver state's attribute by which a balancer finds its Client, and whom the
// state's endpoints are.
type roster struct {
	client *Client
	all    []Address
}

// Equal is for package attributes: each roster is another.
func (r *roster) Equal(other any) bool { return other == any(r) }

type rosterKey struct{}

// publish tells gRPC the replicas, and returns when the load-balancing policy has them.
func publish(c *Client, cc resolver.ClientConn, all []Address) error {
	r := &roster{client: c, all: all}
	state := resolver.State{Attributes: attributes.New(rosterKey{}, r)}
	for _, a := range all {
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: a.Addr}}})
	}
	if state.Endpoints == nil {
		state.Endpoints = []resolver.Endpoint{}
	}
	return cc.UpdateState(state)
}
