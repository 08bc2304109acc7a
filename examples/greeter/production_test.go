package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/examples/greeter/helloworld"
	"github.com/understudy-rpc/understudy/interceptor"
	"github.com/understudy-rpc/understudy/internal/etcdnode"
	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/transport"
)

// TestManifestArgs: the arguments in the StatefulSet are flags of this program.
func TestManifestArgs(t *testing.T) {
	t.Parallel()
	file, err := os.ReadFile("kubernetes/greeter.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(file), "args:\n")
	list, _, _ = strings.Cut(list, "env:\n")
	var args []string
	for _, m := range regexp.MustCompile(`(?m)^ +- (.+)$`).FindAllStringSubmatch(list, -1) {
		args = append(args, strings.NewReplacer("$(POD_NAME)", "greeter-0", "$(NAMESPACE)", "shop", "$(ETCD)",
			"etcd-0.etcd:2379,etcd-1.etcd:2379").Replace(m[1]))
	}
	if len(args) < 2 || args[0] != "replica" {
		t.Fatalf("the arguments are %q", args)
	}
	var said bytes.Buffer
	cfg, err := parseReplica(args[1:], &said)
	if err != nil {
		t.Fatalf("%v, and said %s", err, said.String())
	}
	want := replicaConfig{
		name: "greeter-0", group: "greeter", level: understudy.Stable, etcd: "etcd-0.etcd:2379,etcd-1.etcd:2379",
		listen: "0.0.0.0:8443", advertise: "greeter-0.greeter.shop.svc.cluster.local:8443",
		peers: "0.0.0.0:8444", health: "0.0.0.0:8081", tls: "/etc/greeter/tls", etcdTLS: "/etc/greeter/etcd-tls",
	}
	if cfg != want {
		t.Errorf("they are\n%+v, want\n%+v", cfg, want)
	}
}

// authority issues certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t}
	a.cert, a.key, a.pem = a.issue(&x509.Certificate{IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign})
	return a
}

func (a *authority) issue(c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey, []byte) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber, c.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: "understudy test"}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// identity makes a folder with a certificate for some names.
func (a *authority) identity(names ...string) identity {
	a.t.Helper()
	c := &x509.Certificate{
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, n)
		}
	}
	_, key, cert := a.issue(c)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	folder := a.t.TempDir()
	for name, b := range map[string][]byte{
		"ca.crt": a.pem, "tls.crt": cert, "tls.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
	} {
		if err := os.WriteFile(filepath.Join(folder, name), b, 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	return identity(folder)
}

// TestRollingRestartFailsNoCall: three replicas with certificates, whose clients verify the
// group's name, restarted one after the other, each when the probe of the one before says
// SERVING. No call fails, and no greeting is lost.
func TestRollingRestartFailsNoCall(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ca := newAuthority(t)
	etcd, err := etcdnode.Start(ctx, etcdnode.Config{TLS: ca.identity("127.0.0.1").etcd()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = etcd.Stop() }()

	type running struct {
		cfg  replicaConfig
		s    *served
		stop context.CancelFunc
		done chan error
	}
	start := func(cfg replicaConfig) *running {
		ctx, stop := context.WithCancel(ctx)
		r := &running{cfg, &served{greeter: newGreeter()}, stop, make(chan error, 1)}
		go func() { r.done <- r.s.serve(ctx, cfg, slog.New(slog.DiscardHandler), func(replica.Failover) {}) }()
		serving(ctx, t, cfg.health)
		return r
	}
	end := func(r *running) {
		r.stop()
		if err := <-r.done; err != nil {
			t.Errorf("%s: %v", r.cfg.name, err)
		}
	}
	var group []*running
	for _, name := range []string{"a", "b", "c"} {
		var addrs [3]string
		for i := range addrs {
			if addrs[i], err = freeAddr(); err != nil {
				t.Fatal(err)
			}
		}
		group = append(group, start(replicaConfig{
			name: name, group: "greeter", etcd: etcd.Addr, level: understudy.Stable,
			tls: ca.identity("greeter", "127.0.0.1"), etcdTLS: ca.identity(),
			listen: addrs[0], peers: addrs[1], health: addrs[2],
		}))
	}
	defer func() {
		for _, r := range group {
			end(r)
		}
	}()

	client := func(i identity) *grpc.ClientConn {
		creds, err := i.dial()
		if err != nil {
			t.Fatal(err)
		}
		toEtcd, err := ca.identity().client()
		if err != nil {
			t.Fatal(err)
		}
		conn, err := grpc.NewClient("replicated://"+etcd.Addr+"/greeter",
			append(interceptor.DialOptions(transport.WithEtcd(toEtcd, "", "")),
				grpc.WithTransportCredentials(creds))...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	greet := func(conn *grpc.ClientConn, limit time.Duration) error {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		_, err := helloworld.NewGreeterClient(conn).SayHello(ctx, &helloworld.HelloRequest{Name: "Ada"})
		return err
	}
	conn := client(ca.identity())
	if err := greet(conn, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if err := greet(client(newAuthority(t).identity()), time.Second); err == nil {
		t.Error("a client that knows another CA was answered")
	}

	stop, count := make(chan struct{}), make(chan uint64)
	go func() {
		n := uint64(1)
		defer func() { count <- n }()
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			if err := greet(conn, 10*time.Second); err != nil {
				t.Error(err)
				return
			}
			n++
		}
	}()
	for i := range group {
		end(group[i])
		group[i] = start(group[i].cfg)
	}
	close(stop)
	want := <-count
	for _, r := range group {
		for r.s.status().Executed < group[0].s.status().Executed && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		if got := r.s.greeter.dump(); !maps.Equal(got, map[string]uint64{"Ada": want}) {
			t.Errorf("%s has counted %v, the client %d", r.cfg.name, got, want)
		}
	}
}

// serving waits as a readiness probe does.
func serving(ctx context.Context, t *testing.T, addr string) {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for {
		stream, err := healthpb.NewHealthClient(conn).Watch(ctx, &healthpb.HealthCheckRequest{},
			grpc.WaitForReady(true))
		if err != nil {
			t.Fatal(err)
		}
		for {
			update, err := stream.Recv()
			if status.Code(err) == codes.Unavailable {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if update.GetStatus() == healthpb.HealthCheckResponse_SERVING {
				return
			}
		}
	}
}
