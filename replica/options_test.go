package replica_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/election/memory"
	"github.com/understudy-rpc/understudy/interceptor"
	"github.com/understudy-rpc/understudy/replica"
)

// TestWrongOptionsEndJoin: each of them is told by its name, and all of them at once.
func TestWrongOptionsEndJoin(t *testing.T) {
	t.Parallel()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	creds := insecure.NewCredentials()
	join := func(kind replica.Kind, opts ...replica.Option) error {
		ours := []replica.Option{replica.Name("a"), replica.Store(memory.NewStore().Client("greeter"))}
		_, err := replica.Join(t.Context(), "etcd:///greeter", kind, append(ours, opts...)...)
		return err
	}
	for _, tt := range []struct {
		option replica.Option
		words  []string
	}{
		{nil, []string{"option 2", "nil"}},
		{replica.Name(""), []string{"Name", "is empty"}},
		{replica.Name("a/b"), []string{"Name", "'/'"}},
		{replica.Advertise(""), []string{"Advertise", "host:port"}},
		{replica.Advertise(":50051"), []string{"Advertise", "names no host"}},
		{replica.Advertise("host1"), []string{"Advertise", "isn't host:port"}},
		{replica.Advertise("host1:0"), []string{"Advertise", "its port"}},
		{replica.Advertise("host1:65536"), []string{"Advertise", "its port"}},
		{replica.Advertise("host1:https"), []string{"Advertise", "its port"}},
		{replica.Advertise("dns:///host1:50051"), []string{"Advertise", "isn't host:port"}},
		{replica.Advertise("0.0.0.0:50051"), []string{"Advertise", "from another host"}},
		{replica.Advertise("[::]:50051"), []string{"Advertise", "from another host"}},
		{replica.Advertise("[::ffff:0.0.0.0]:50051"), []string{"Advertise", "from another host"}},
		{replica.AdvertisePeers("[::]:50051"), []string{"AdvertisePeers", "from another host"}},
		{replica.Level(7), []string{"Level", "Level(7)"}},
		{replica.Level(-1), []string{"Level"}},
		{replica.Version("a\nb"), []string{"Version", "unprintable"}},
		{replica.MinInSync(0), []string{"MinInSync", "0 replicas"}},
		{replica.MinInSync(-3), []string{"MinInSync", "-3 replicas"}},
		{replica.Peers(nil, creds, creds), []string{"Peers", "listener is nil"}},
		{replica.Peers(lis, creds, nil), []string{"Peers", "credentials"}},
		{replica.Peers(lis, nil, creds), []string{"Peers", "credentials"}},
		{replica.Unreplicated("/grpc.health.v1.Health"), []string{"Unreplicated", "full name"}},
		{replica.Unreplicated(""), []string{"Unreplicated", "full name"}},
		{replica.Logger(nil), []string{"Logger", "nil"}},
		{replica.Health(nil), []string{"Health", "nil"}},
		{replica.OnFailover(nil), []string{"OnFailover", "nil"}},
		{replica.AuthenticateSession(nil), []string{"AuthenticateSession", "nil"}},
		{replica.Etcd(nil, "me", ""), []string{"Etcd", "one of them is empty"}},
		{replica.Etcd(nil, "", ""), []string{"Etcd", "give one of them"}}, // besides Store
		{replica.Store(nil), []string{"Store", "nil"}},
		{replica.PeerDialer(nil), []string{"PeerDialer", "nil"}},
		{replica.Health(nil), []string{"Health", "nil"}},
		{replica.Clock(nil), []string{"Clock", "nil"}},
	} {
		mentions(t, tt.words[0], join(replica.Stateless(), tt.option), tt.words...)
	}
	mentions(t, "two", join(replica.Stateless(), replica.MinInSync(-1), replica.Clock(nil)), "MinInSync", "Clock")
	mentions(t, "no kind", join(replica.Kind{}), "State or Stateless")
	mentions(t, "no state", join(replica.State(nil)), "State or Stateless")
	for _, addr := range []string{"host1:50051", "10.1.2.3:1", "[fd00::1]:65535", "[fe80::1%eth0]:50051"} {
		if err := join(replica.Stateless(), replica.Advertise(addr), replica.AdvertisePeers(addr),
			replica.Level(understudy.Stable)); err != nil {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

// TestJoinDoesNothingOnceItsContextHasEnded, and says why.
func TestJoinDoesNothingOnceItsContextHasEnded(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the process ends")
	cancel(why)
	r, err := replica.Join(ctx, "etcd://127.0.0.1:1/greeter", replica.Stateless(), replica.Name("a"))
	if r != nil || !errors.Is(err, why) {
		t.Errorf("got %v, %v", r, err)
	}
}

// TestPublishedAddressesCanBeDialled: what a replica publishes of listeners of all addresses, as
// ":50051" is one.
func TestPublishedAddressesCanBeDialled(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		clients, peers string // peers: "" for the default
		opts           []replica.Option
		addr, peerAddr string // "" for the listener's own
		words          []string
	}{
		"all addresses": {clients: ":0", words: []string{"replica.Advertise", "[::]"}},
		"all of IPv4":   {clients: "0.0.0.0:0", words: []string{"replica.Advertise", "from another host"}},
		"Advertise": {
			clients: ":0", opts: []replica.Option{replica.Advertise("host1:50051")}, addr: "host1:50051",
			peerAddr: "host1:",
		},
		"Advertise, IPv6": {
			clients: ":0", opts: []replica.Option{replica.Advertise("[fd00::1]:50051")}, addr: "[fd00::1]:50051",
			peerAddr: "[fd00::1]:",
		},
		"both advertised": {
			clients: ":0", peers: ":0",
			opts: []replica.Option{replica.Advertise("host1:1"), replica.AdvertisePeers("host2:2")},
			addr: "host1:1", peerAddr: "host2:2",
		},
		"all addresses for peers": {clients: "127.0.0.1:0", peers: "0.0.0.0:0", peerAddr: "127.0.0.1:"},
		"one address":             {clients: "127.0.0.1:0", peers: "127.0.0.1:0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			store := memory.NewStore()
			lis, err := net.Listen("tcp", tt.clients)
			if err != nil {
				t.Skip(err) // no IPv6 here
			}
			own := ""
			opts := append([]replica.Option{replica.Name("a"), replica.Store(store.Client("g")),
				replica.InsecurePeers()}, tt.opts...)
			if tt.peers != "" {
				peers, err := net.Listen("tcp", tt.peers)
				if err != nil {
					t.Fatal(err)
				}
				own = peers.Addr().String()
				opts = append(opts, replica.Peers(peers, nil, nil))
			}
			r, err := replica.Join(ctx, "etcd:///g", replica.Stateless(), opts...)
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- r.Serve(ctx, grpc.NewServer(interceptor.ServerOptions(r)...), lis) }()
			published := make(chan election.Replica, 1)
			go func() {
				for view := range store.Client("g").Watch(ctx) {
					if m, ok := view.Replica("a"); ok {
						published <- m
						return
					}
				}
			}()
			select {
			case m := <-published:
				cancel()
				if err := <-ended; err != nil {
					t.Error(err)
				}
				if tt.words != nil {
					t.Fatalf("published: %+v", m)
				}
				is := func(what, got, want, own string) {
					host, _, _ := net.SplitHostPort(want)
					gotHost, port, err := net.SplitHostPort(got)
					switch {
					case want == "" && got != own, want != "" &&
						(gotHost != host || err != nil || port == "0" || port == ""),
						len(want) > 0 && want[len(want)-1] != ':' && got != want:
						t.Errorf("%s are told to dial %q, want %q", what, got, want+own)
					}
				}
				is("clients", m.Addr, tt.addr, lis.Addr().String())
				is("peers", m.PeerAddr, tt.peerAddr, own)
			case err := <-ended:
				if tt.words == nil {
					t.Fatal(err)
				}
				mentions(t, name, err, tt.words...)
				if len(store.State("g").Replicas) > 0 {
					t.Error("it was published")
				}
			}
		})
	}
}

// TestIPv6AddressesWork: replicas and clients on IPv6 addresses, which are no URLs' hosts without
// brackets.
func TestIPv6AddressesWork(t *testing.T) {
	t.Parallel()
	store := memory.NewStore()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	views := store.Client("test").Watch(ctx)
	stop := map[string]func(){}
	for i, name := range []string{"a", "b"} {
		lis, err := net.Listen("tcp", "[::1]:0")
		if err != nil {
			t.Skip(err)
		}
		j := &journal{}
		r, err := replica.Join(ctx, "etcd:///test", replica.State(j), replica.Name(name),
			replica.Store(store.Client("test")))
		if err != nil {
			t.Fatal(err)
		}
		server := grpc.NewServer(interceptor.ServerOptions(r)...)
		r.Registrar(server).RegisterService(&journalDesc, j)
		ended := make(chan error, 1)
		go func() { ended <- r.Serve(ctx, server, lis) }()
		stop[name] = func() {
			if err := r.Stop(context.Background()); err != nil {
				t.Error(err)
			}
		}
		for view := range views {
			if len(view.InSync) == i+1 {
				break
			}
		}
		t.Cleanup(func() {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
	p := &place{t: t, store: store}
	conn := p.dialTCP()
	mustWrite(t, conn, "first")
	stop["a"]()
	mustWrite(t, conn, "second")
	if !slices.ContainsFunc(store.State("test").InSync, func(m election.Member) bool { return m.Name == "b" }) {
		t.Errorf("in-sync are %v", store.State("test").InSync)
	}
}
