package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/understudy-rpc/understudy/replica"
)

// What a replica needs besides, on machines of its own: see docs/production.md.

// identity is a folder with who one is, and who others may be: a certificate in tls.crt, its key in
// tls.key, and the CA of everybody's certificates in ca.crt, as Kubernetes and cert-manager write
// them. The empty one is plaintext. The certificate is read anew for each connection, so that it
// may be renewed.
type identity string

func (i identity) certificate() (*tls.Certificate, error) {
	c, err := tls.LoadX509KeyPair(filepath.Join(string(i), "tls.crt"), filepath.Join(string(i), "tls.key"))
	return &c, err
}

// cas returns the CA's certificates, and an error if anything in the folder is no good.
func (i identity) cas() (*x509.CertPool, error) {
	if _, err := i.certificate(); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(string(i), "ca.crt"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("%s/ca.crt has no certificate", i)
	}
	return pool, nil
}

// client is for those who dial: they show the certificate to whoever asks.
func (i identity) client() (*tls.Config, error) {
	cas, err := i.cas()
	return &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: cas,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return i.certificate() },
	}, err
}

// server is for those who listen.
func (i identity) server(ask tls.ClientAuthType) (*tls.Config, error) {
	cas, err := i.cas()
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ClientCAs: cas, ClientAuth: ask,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return i.certificate() },
	}, err
}

// etcd is for an etcd that listens.
func (i identity) etcd() transport.TLSInfo {
	file := func(name string) string { return filepath.Join(string(i), name) }
	return transport.TLSInfo{CertFile: file("tls.crt"), KeyFile: file("tls.key"), TrustedCAFile: file("ca.crt"),
		ClientCertAuth: true}
}

// dial is how a client reaches the replicas.
func (i identity) dial() (credentials.TransportCredentials, error) {
	if i == "" {
		return insecure.NewCredentials(), nil
	}
	cfg, err := i.client()
	return credentials.NewTLS(cfg), err
}

// serve is how a replica is reached: by its clients, and, on peers, by the other replicas, who must
// show their own certificates.
func (i identity) serve(peers net.Listener) (grpc.ServerOption, replica.Option, error) {
	if i == "" {
		return grpc.Creds(insecure.NewCredentials()), replica.Peers(peers, nil, nil), nil
	}
	clients, err := i.server(tls.NoClientCert)
	if err != nil {
		return nil, nil, err
	}
	mutual, err := i.server(tls.RequireAndVerifyClientCert)
	if err != nil {
		return nil, nil, err
	}
	dial, err := i.client()
	if err != nil {
		return nil, nil, err
	}
	return grpc.Creds(credentials.NewTLS(clients)),
		replica.Peers(peers, credentials.NewTLS(dial), credentials.NewTLS(mutual)), nil
}

// answerProbes serves a replica's health on a port of its own: Kubernetes' probes know no
// certificates.
func answerProbes(addr string, h *health.Server) (stop func(), err error) {
	if addr == "" {
		return func() {}, nil
	}
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	s := grpc.NewServer()
	healthpb.RegisterHealthServer(s, h)
	go func() { _ = s.Serve(lis) }()
	return s.Stop, nil
}
