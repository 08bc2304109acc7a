package replica

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/clock"
	"github.com/understudy-rpc/understudy/internal/logs"
)

// Snapshotter is the state of a replicated service, as the library needs it.
type Snapshotter interface {
	// Snapshot is called between turns. It returns a function that writes the state as it is at
	// this moment; write may run concurrently with later turns, so it must not read what they
	// change.
	Snapshot() (write func(io.Writer) error, err error)
	// Restore replaces the state by one that write wrote. It is called with no turn running. After
	// an error the replica tries again, from another snapshot. So it does when Restore neither
	// reads nor returns for 30 s, once Restore has returned; and when more than 128 MiB, or 131,072
	// calls, were made meanwhile.
	Restore(io.Reader) error
}

// Kind says what a group replicates: State or Stateless.
type Kind struct{ state Snapshotter }

// State is a service with a state, which a replica that joins receives as a snapshot of at most 64
// MiB.
func State(s Snapshotter) Kind { return Kind{s} }

// Stateless is a service whose handlers keep nothing from call to call: callers still get each
// reply once, whoever dies.
func Stateless() Kind { return Kind{stateless{}} }

type stateless struct{}

func (stateless) Snapshot() (func(io.Writer) error, error) {
	return func(io.Writer) error { return nil }, nil
}

func (stateless) Restore(io.Reader) error { return nil }

// Option changes a default of Join.
type Option func(*config)

type config struct {
	wrong           []error // what options were given
	name, version   string
	advertise       string
	advertisePeers  string
	level           understudy.Level
	minInSync       int
	peers           net.Listener
	peerCreds       credentials.TransportCredentials
	peerServerCreds credentials.TransportCredentials
	insecurePeers   bool
	unreplicated    map[string]bool
	log             *logs.Logger
	replace         string
	replaces        uint64 // the group's id, from replace
	onFailover      func(Failover)
	authenticate    func(context.Context) error
	store           election.Election
	etcd            *etcdAccess // nil: plaintext, and no user
	dial            func(context.Context, string) (net.Conn, error)
	clock           clock.Clock
	health          *health.Server
}

// check notes an error of Join's when an option can't be what it was given.
func (c *config) check(option string, ok bool, why string) {
	if !ok {
		c.wrong = append(c.wrong, fmt.Errorf("replica: %s: %s", option, why))
	}
}

const isNil = "it is nil: leave the option out to have the default"

// Name is the replica's name, which outlives its processes; the default is the host's name. Two
// live replicas of a group can't have one name.
func Name(name string) Option {
	return func(c *config) {
		err := election.ValidName(name)
		c.check("Name", err == nil, fmt.Sprint(err))
		c.name = name
	}
}

// Advertise is the host:port that clients dial; the default is the address of Serve's listener. It
// is needed where that is [::] or 0.0.0.0, which is no address that another host can dial.
func Advertise(addr string) Option {
	return func(c *config) {
		err := dialable(addr)
		c.check("Advertise", err == nil, fmt.Sprint(err))
		c.advertise = addr
	}
}

// AdvertisePeers is the host:port that the other replicas dial; the default is the address of the
// listener of Peers, with the host that clients dial where the listener's own is [::] or 0.0.0.0.
func AdvertisePeers(addr string) Option {
	return func(c *config) {
		err := dialable(addr)
		c.check("AdvertisePeers", err == nil, fmt.Sprint(err))
		c.advertisePeers = addr
	}
}

// Level is the group's level; the default is understudy.Reflected. All replicas of a group must
// agree.
func Level(l understudy.Level) Option {
	return func(c *config) {
		c.check("Level", l >= understudy.Reflected && l <= understudy.Stable, fmt.Sprintf("there is no level %v", l))
		c.level = l
	}
}

// Version names the service's version, at most 128 bytes of printable UTF-8; the default is empty.
func Version(v string) Option {
	return func(c *config) {
		err := election.Group{ID: 1, Version: v}.Validate()
		c.check("Version", err == nil, fmt.Sprint(err))
		c.version = v
	}
}

// MinInSync refuses calls with Unavailable while fewer than n replicas, the primary counted, are
// in-sync; the default is 1: calls go on with the primary alone.
func MinInSync(n int) Option {
	return func(c *config) {
		c.check("MinInSync", n >= 1, fmt.Sprintf("%d replicas: at least the primary is in-sync, so the least is 1", n))
		c.minInSync = n
	}
}

// Peers is the listener on which the replicas speak to each other, and the mutual TLS by which they
// know each other; client and server credentials are usually made from one certificate. The default
// listener has port 0 on the host of Serve's listener, and is used without TLS on a loopback
// address only. Credentials are both given, or both nil: plaintext.
func Peers(lis net.Listener, client, server credentials.TransportCredentials) Option {
	return func(c *config) {
		c.check("Peers", lis != nil, "its listener is nil")
		c.check("Peers", (client == nil) == (server == nil),
			"its credentials for clients or for servers are nil: give both, or neither")
		c.peers, c.peerCreds, c.peerServerCreds = lis, client, server
	}
}

// InsecurePeers lets the replicas speak to each other in plaintext on any address: whoever reaches
// the port can read and change the group's state.
func InsecurePeers() Option { return func(c *config) { c.insecurePeers = true } }

// Unreplicated declares services, by their full names, that are served by each replica for itself.
// Health and reflection are declared already.
func Unreplicated(services ...string) Option {
	return func(c *config) {
		for _, s := range services {
			c.check("Unreplicated", protoreflect.FullName(s).IsValid(),
				fmt.Sprintf("%q isn't the full name of a service", s))
			c.unreplicated[s] = true
		}
	}
}

// Logger is where the replica logs; the default discards. Its handler is called in a goroutine of
// its own, and may do what it likes; one that is too slow loses lines, and is told how many.
func Logger(l *slog.Logger) Option {
	return func(c *config) {
		c.check("Logger", l != nil, isNil)
		c.log = logs.New(l)
	}
}

// OnFailover is called when this replica has taken over, once its gate is open, in a goroutine of
// its own: whatever it does holds nothing up.
func OnFailover(f func(Failover)) Option {
	return func(c *config) {
		c.check("OnFailover", f != nil, isNil)
		c.onFailover = f
	}
}

// AuthenticateSession is called with the context of a source's stream before its session is opened
// or attached; an error refuses it; a panic is one. It may be called concurrently, and take until
// its context ends, after which it isn't waited for. (The user's interceptors don't see that
// stream.)
func AuthenticateSession(f func(context.Context) error) Option {
	return func(c *config) {
		c.check("AuthenticateSession", f != nil, isNil)
		c.authenticate = f
	}
}

// ReplaceGroup begins the group anew, with the state that this replica's service has, in the place
// of the group with this id, whose state is given up: an operator's act, when the state is lost, or
// the store is. The id is in hexadecimal, as it is in the errors and log lines that call for this.
// Callers of the old group are told DataLoss, once; its replicas, should any be alive, give up
// their state and join the new one. Nothing is done while in-sync replicas of the old group are
// registered, or once it was replaced: so the option may stay while all replicas are started.
func ReplaceGroup(id string) Option { return func(c *config) { c.replace = id } }

// Etcd is how this replica enters etcd: with TLS, unless that is nil, and as a user of etcd, unless
// username is empty; the default is plaintext, and no user. The user needs the right to read and
// write the keys under /understudy/<group>/, as a prefix, and no other. Clients have
// transport.WithEtcd.
func Etcd(tls *tls.Config, username, password string) Option {
	return func(c *config) {
		c.check("Etcd", (username == "") == (password == ""), "a user has a name and a password: one of them is empty")
		c.etcd = &etcdAccess{tls, username, password}
	}
}

type etcdAccess struct {
	tls                *tls.Config
	username, password string
}

// Store replaces etcd: election/memory in tests, or an etcd client of one's own. The target of Join
// then needs a group only. Clients have transport.WithStore.
func Store(e election.Election) Option {
	return func(c *config) {
		c.check("Store", e != nil, isNil)
		c.store = e
	}
}

// PeerDialer is how this replica reaches the others; the default dials TCP.
func PeerDialer(dial func(ctx context.Context, addr string) (net.Conn, error)) Option {
	return func(c *config) {
		c.check("PeerDialer", dial != nil, isNil)
		c.dial = dial
	}
}

// Clock tells elapsed time: by it, a primary that hasn't read in etcd for a second that it leads
// lets no reply leave. It must count the time during which the machine is suspended, and never go
// back; the default is CLOCK_BOOTTIME on Linux, elsewhere time.Now. Tests in fake time give one
// that is based on time.Now.
func Clock(elapsed func() time.Duration) Option {
	return func(c *config) {
		c.check("Clock", elapsed != nil, isNil)
		c.clock = elapsed
	}
}

// Health lets the replica set the statuses of a health server, which serves where the user
// registers it: on Serve's server, or on one of its own, in plaintext, for probes. The names are
// those of the replicated services, and "" for the whole process. They are SERVING while the
// replica is ready, as Ready says, and NOT_SERVING otherwise: from Join until it is in-sync, and
// from the beginning of its end, before its listener closes. Other names are the user's. A health
// server is one replica's.
//
// It is for readiness. A replica that isn't ready may be joining, or wait for etcd or for the
// others: whoever kills it for that, makes it worse. Let a liveness probe see whether the port
// accepts.
func Health(h *health.Server) Option {
	return func(c *config) {
		c.check("Health", h != nil, isNil)
		c.health = h
	}
}

// The times of the protocol, as docs/concepts.md lists them.
const (
	authority        = time.Second            // A (R10)
	authorityRefresh = authority / 4          // how often it is renewed
	margin           = authority / 10         // A's tolerance
	heartbeat        = 100 * time.Millisecond // how often replicas say that they live
	silence          = 500 * time.Millisecond // without a heartbeat: suspect
	joinSilence      = 10 * silence           // a joiner's patience
	hearsTimeout     = 100 * time.Millisecond // a peer that doesn't answer counts as not hearing
	reconnect        = 50 * time.Millisecond  // a backup whose stream broke has this long to come back
	idle             = 50 * time.Millisecond  // R4: the idle interval
	// how often sources hear of their frames, and of what is stable, while nothing else tells them
	lazily      = 250 * time.Millisecond
	fetchAfter  = 20 * time.Millisecond // ordered and not held for this long, nor on its way: fetch it
	fetchAnyway = 10 * fetchAfter       // on its way or not
	// how often at most a stream's word that calls have ended takes effect at once; it does lazily
	endedEvery       = 20 * time.Millisecond
	reconcileTimeout = 3 * time.Second  // R12.2
	sessionTimeout   = 30 * time.Second // a session without a stream for this long expires
	sessionGrace     = 10 * time.Second // but none expires so soon after a takeover
	lookAgain        = time.Second      // how often a stream looks whether its session is known by now
	slowTurn         = time.Second      // the watchdog names the method of a longer turn
	transferSilence  = 10 * time.Second // a transfer of which nothing comes for so long has failed
	restoreSilence   = 30 * time.Second // so has a Restore that neither reads nor returns
	// who executes nothing for so long, while another replica has got further, leaves
	executeSilence   = 5 * time.Second
	snapshotWarnings = time.Minute // how often the primary warns of a large state

	pendingSourceOrderMax = 64        // FIG. 7, R4, below Direct
	lazyParts             = 10        // of the sessions, who hear lazily one part after the other
	lazyFrames            = 1 << 10   // a source hears of its frames at least this often (frames), too
	lazyAck               = 64        // a backup acknowledges at least this often (entries)
	lazyAckBytes          = 1 << 20   // and all that it holds, while its log has messages of more bytes
	maxLog                = 1 << 18   // entries and messages of the log, each
	maxLogBytes           = 256 << 20 // bytes of its messages
	// messages of one session that nobody has ordered, and replies that its source hasn't declared
	// to have, each
	maxOutstanding = 1 << 13
	maxSessions    = 10_000   // of a group; and streams that wait for theirs, at a replica
	maxOpenings    = 256      // under way at once
	maxQueueBytes  = 64 << 20 // bytes queued for one stream; then it is cut (R6)
	maxSnapshot    = 64 << 20
	maxJoinBytes   = maxLogBytes / 2 // kept for a joiner, and by it while it restores
	joinDoublings  = 8               // of the pause after an attempt to join that has failed: up to 12.8 s
	joinTroubles   = 5               // so many attempts to join that have failed are an error, fewer a warning
)
