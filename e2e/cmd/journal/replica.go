package main

import (
	"context"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/e2e/journal"
	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/interceptor"
	"github.com/understudy-rpc/understudy/internal/process"
	"github.com/understudy-rpc/understudy/replica"
)

// member is a replica's process.
type member struct {
	journal  *journal.Journal
	link     *journal.Link
	group    string
	host     string
	port     int    // of clients; 0 for a free one
	peerPort int    // of the other replicas; 0 for a free one
	relay    string // "" for none
	tlsDir   string // "" for plaintext among the replicas
	replaced string // "" for none
	dialled  strands
	replica  *replica.Replica
}

// serve serves the journal until ctx ends: a stock gRPC server and four lines.
func (m *member) serve(
	ctx context.Context, etcd, name string, level understudy.Level, minInSync int, log *slog.Logger,
) error {
	lis, err := m.listen(m.port)
	if err != nil {
		return err
	}
	defer lis.Close()
	peers, err := m.listen(m.peerPort)
	if err != nil {
		return err
	}
	defer peers.Close()
	client, server, err := journal.ReadTLS(m.tlsDir)
	if err != nil {
		return err
	}
	options := []replica.Option{
		replica.Name(name), replica.Level(level), replica.MinInSync(minInSync), replica.Logger(log),
		replica.Peers(peers, client, server), replica.PeerDialer(m.dialled.dialer(dialTCP)),
		replica.OnFailover(func(f replica.Failover) { m.link.Tell(journal.Event{Failover: &f}) }),
	}
	if m.tlsDir == "" && !net.ParseIP(m.host).IsLoopback() {
		options = append(options, replica.InsecurePeers())
	}
	if m.replaced != "" {
		options = append(options, replica.ReplaceGroup(m.replaced))
	}
	if m.relay != "" {
		client, err := via(m.relay).etcd(strings.Split(etcd, ","))
		if err != nil {
			return err
		}
		defer client.Close()
		options = append(options, replica.PeerDialer(m.dialled.dialer(via(m.relay))),
			replica.Store(election.NewEtcd(client, m.group)))
	}
	m.replica, err = replica.Join(ctx, "etcd://"+etcd+"/"+m.group, replica.State(m.journal), options...)
	if err != nil {
		return err
	}
	s := grpc.NewServer(interceptor.ServerOptions(m.replica)...)
	m.journal.Register(m.replica.Registrar(s))
	m.link.Tell(journal.Event{Addr: lis.Addr().String()})
	go m.watch(ctx)
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	go func() {
		<-terminated
		log.Info("terminated: the server stops gracefully")
		s.GracefulStop()
	}()
	return m.replica.Serve(ctx, s, lis)
}

func (m *member) listen(port int) (net.Listener, error) {
	return net.Listen("tcp", net.JoinHostPort(m.host, strconv.Itoa(port)))
}

// watch tells the test when this replica's part in the group changes.
func (m *member) watch(ctx context.Context) {
	var told replica.Status
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		now := m.replica.Status()
		part := replica.Status{Role: now.Role, Name: now.Name, Primary: now.Primary, Epoch: now.Epoch,
			InSync: now.InSync, Suspect: now.Suspect}
		if !reflect.DeepEqual(part, told) {
			m.link.Tell(journal.Event{Status: &now})
			told = part
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (m *member) answer(ctx context.Context, c journal.Command) (journal.Event, error) {
	switch c.Do {
	case journal.DoDump:
		d := m.journal.Dump()
		return journal.Event{Dump: &d}, nil
	case journal.DoDigest:
		d := m.journal.Dump()
		d.Entries = nil
		return journal.Event{Dump: &d}, nil
	case journal.DoExecuted:
		return m.executed(ctx, c.Count)
	case journal.DoStrand:
		m.dialled.strand()
		return journal.Event{}, nil
	}
	if c.Do == journal.DoClock {
		return answerClock(c)
	}
	return journal.Event{}, process.Unknown(c)
}

// executed waits until this replica has executed so far.
func (m *member) executed(ctx context.Context, count uint64) (journal.Event, error) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		now := m.replica.Status()
		if now.Executed >= count {
			return journal.Event{Status: &now}, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return journal.Event{Status: &now}, ctx.Err()
		}
	}
}
