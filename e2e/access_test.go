package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	etcdtls "go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/understudy-rpc/understudy/e2e/journal"
	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/interceptor"
	"github.com/understudy-rpc/understudy/internal/etcdnode"
	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/transport"
)

// certificate makes one of 127.0.0.1's, in files, and what a client needs to trust it.
func certificate(t *testing.T) (cert, key string, trusting *tls.Config) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for file, b := range map[string][]byte{cert: certPEM,
		key: pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})} {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return cert, key, &tls.Config{RootCAs: pool}
}

// TestEtcdWithTLSAndUsers: replicas and clients enter an etcd with TLS and users, whose rights are
// for the keys of their group only: a client's to read them.
func TestEtcdWithTLSAndUsers(t *testing.T) {
	cert, key, trusting := certificate(t)
	etcd, err := etcdnode.Start(t.Context(), etcdnode.Config{
		Dir: t.TempDir(), TLS: etcdtls.TLSInfo{CertFile: cert, KeyFile: key},
		Change: func(cfg *embed.Config) {
			quick(cfg)
			cfg.BcryptCost = 4 // the least: under the race detector the default takes seconds for each login
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(etcd.Server.Close)
	addr := etcd.Addr

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	admin, err := election.DialAs([]string{addr}, trusting, "", "")
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	const prefix = "/understudy/journal/"
	end := clientv3.GetPrefixRangeEnd(prefix)
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(admin.UserAdd(ctx, "root", "root"))
	must(admin.UserGrantRole(ctx, "root", "root"))
	for user, right := range map[string]clientv3.PermissionType{
		"replica": clientv3.PermissionType(clientv3.PermReadWrite),
		"client":  clientv3.PermissionType(clientv3.PermRead),
	} {
		must(admin.RoleAdd(ctx, user))
		must(admin.RoleGrantPermission(ctx, user, prefix, end, right))
		must(admin.UserAdd(ctx, user, "secret"))
		must(admin.UserGrantRole(ctx, user, user))
	}
	must(admin.AuthEnable(ctx))

	serve := func(name, group, password string, tls *tls.Config) (*replica.Replica, <-chan error) {
		t.Helper()
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		j := journal.New(0)
		r, err := replica.Join(ctx, "etcd://"+addr+"/"+group, replica.State(j), replica.Name(name),
			replica.Etcd(tls, "replica", password))
		if err != nil {
			t.Fatal(err)
		}
		s := grpc.NewServer(interceptor.ServerOptions(r)...)
		j.Register(r.Registrar(s))
		ended := make(chan error, 1)
		go func() { ended <- r.Serve(ctx, s, lis) }()
		t.Cleanup(func() { _ = r.Stop(context.Background()) })
		return r, ended
	}
	for words, try := range map[string]func() <-chan error{
		"authentication failed": func() <-chan error { _, e := serve("x", "journal", "wrong", trusting); return e },
		"permission denied":     func() <-chan error { _, e := serve("x", "other", "secret", trusting); return e },
	} {
		if err := <-try(); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("got %v, want %q", err, words)
		}
	}

	watcher, err := election.DialAs([]string{addr}, trusting, "client", "secret")
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	views := election.NewEtcd(watcher, "journal").Watch(ctx)
	inSync := func(n int) {
		t.Helper()
		for view := range views {
			if len(view.InSync) == n {
				return
			}
		}
		t.Fatalf("never %d in-sync", n)
	}
	first, _ := serve("a", "journal", "secret", trusting)
	inSync(1)
	serve("b", "journal", "secret", trusting)
	inSync(2)
	conn, err := grpc.NewClient("replicated://"+addr+"/journal",
		append(interceptor.DialOptions(transport.WithEtcd(trusting, "client", "secret")),
			grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := journal.NewClient(conn)
	must(client.Append(ctx, journal.Entry{Client: "x", Call: 1}, ""))
	if err := first.Stop(ctx); err != nil {
		t.Error(err)
	}
	must(client.Append(ctx, journal.Entry{Client: "x", Call: 2}, ""))
	inSync(1)
}
