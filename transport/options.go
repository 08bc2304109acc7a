package transport

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/clock"
	"github.com/understudy-rpc/understudy/internal/logs"
)

// An Option changes a default of a ClientConn. One that can't be what it was given makes every call
// fail with FailedPrecondition, which says why.
type Option func(*config)

type config struct {
	wrong         []error     // what options were given
	etcd          *etcdAccess // nil: plaintext, and no user
	elect         func(target) (election.Election, io.Closer, error)
	level         understudy.Level
	serviceConfig string
	giveUp        time.Duration
	unreplicated  map[string]bool
	log           *logs.Logger
	elapsed       clock.Clock
	monitor       *Monitor
	inMetadata    bool
}

// defaultGiveUp is how long a call without a deadline goes on.
const defaultGiveUp = 30 * time.Second

func newConfig(opts []Option) config {
	cfg := config{
		giveUp:       defaultGiveUp,
		unreplicated: map[string]bool{},
		log:          logs.New(nil),
		elapsed:      clock.System(),
		monitor:      new(Monitor),
	}
	WithUnreplicated("grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection",
		"grpc.reflection.v1alpha.ServerReflection")(&cfg)
	for i, opt := range opts {
		if opt == nil {
			cfg.check(fmt.Sprintf("option %d", i), false, "it is nil")
			continue
		}
		opt(&cfg)
	}
	cfg.check("WithEtcd", cfg.elect == nil || cfg.etcd == nil, "WithStore replaces etcd: give one of them")
	if cfg.elect == nil {
		as := *cmp.Or(cfg.etcd, &etcdAccess{})
		cfg.elect = func(t target) (election.Election, io.Closer, error) { return etcds.elect(t, as) }
	}
	return cfg
}

// check says whether an option can be what it was given. If it can't, every call fails, and says
// so.
func (c *config) check(option string, ok bool, why string) bool {
	if !ok {
		c.wrong = append(c.wrong, fmt.Errorf("transport: %s: %s", option, why))
	}
	return ok
}

const isNil = "it is nil: leave the option out to have the default"

// WithEtcd is how the client enters etcd: with TLS, unless that is nil, and as a user of etcd,
// unless username is empty; the default is plaintext, and no user. The user needs the right to read
// the keys under /understudy/<group>/, as a prefix, and no other. Replicas have replica.Etcd.
func WithEtcd(tls *tls.Config, username, password string) Option {
	return func(c *config) {
		c.check("WithEtcd", (username == "") == (password == ""),
			"a user has a name and a password: one of them is empty")
		c.etcd = &etcdAccess{tls, username, password}
	}
}

// WithStore replaces etcd as dialled from the target: election/memory in tests, or an etcd client
// of one's own, which the ClientConn's Close doesn't close. The target then needs a group only
// (replicated:///group). The default is shared by the ClientConns of the process that have one
// target. Replicas have replica.Store.
func WithStore(e election.Election) Option {
	return func(c *config) {
		c.check("WithStore", e != nil, isNil)
		c.elect = func(target) (election.Election, io.Closer, error) { return e, nil, nil }
	}
}

// WithLevel raises the level of every call of the ClientConn; the default is the group's own level.
// A level below the group's changes nothing.
func WithLevel(l understudy.Level) Option {
	return func(c *config) {
		c.check("WithLevel", l >= understudy.Reflected && l <= understudy.Stable,
			fmt.Sprintf("there is no level %v", l))
		c.level = l
	}
}

// WithServiceConfig adds a gRPC service config (JSON), in place of grpc.WithDefaultServiceConfig,
// which would take away our load-balancing policy: then every call fails with FailedPrecondition.
// It can't have a load-balancing policy of its own.
func WithServiceConfig(json string) Option { return func(c *config) { c.serviceConfig = json } }

// WithGiveUp is how long a call without a deadline goes on before it ends as Unknown; the default
// is 30 s, and 0 is for ever.
func WithGiveUp(d time.Duration) Option {
	return func(c *config) {
		c.check("WithGiveUp", d >= 0, fmt.Sprintf("%v is no time to wait; 0 is for ever", d))
		c.giveUp = d
	}
}

// WithUnreplicated names further services (their full names) that each replica serves for itself:
// their calls and streams go, untouched, to the primary's address, or while none is known to any
// replica. Health and reflection are named already.
func WithUnreplicated(services ...string) Option {
	return func(c *config) {
		for _, s := range services {
			c.check("WithUnreplicated", protoreflect.FullName(s).IsValid(),
				fmt.Sprintf("%q isn't the full name of a service", s))
			c.unreplicated[s] = true
		}
	}
}

// WithHeaderInMetadata lets gRPC metadata carry the protocol's header, under understudy-bin,
// instead of a field in front of the request's and the reply's own bytes, which is the default up
// to 64 KiB. It costs more (docs/performance.md), and is for who looks at metadata, or has
// something on the way that takes messages apart.
func WithHeaderInMetadata() Option { return func(c *config) { c.inMetadata = true } }

// WithLogger is where the client reports failovers, refused streams and malformed messages; the
// default discards. Its handler is called in a goroutine of its own, and may do what it likes; one
// that is too slow loses lines, and is told how many.
func WithLogger(log *slog.Logger) Option {
	return func(c *config) {
		if c.check("WithLogger", log != nil, isNil) {
			c.log = logs.New(log)
		}
	}
}

// WithClock tells elapsed time: by it, a reply isn't accepted that was under way for longer than
// its primary could be sure to lead. It must count the time during which the machine is suspended,
// and never go back; the default is CLOCK_BOOTTIME on Linux, elsewhere time.Now. Tests in fake time
// give one that is based on time.Now.
func WithClock(elapsed func() time.Duration) Option {
	return func(c *config) {
		if c.check("WithClock", elapsed != nil, isNil) {
			c.elapsed = elapsed
		}
	}
}

// WithMonitor lets m read what the client counts.
func WithMonitor(m *Monitor) Option {
	return func(c *config) {
		if c.check("WithMonitor", m != nil, isNil) {
			c.monitor = m
		}
	}
}

// AtLeast raises the level of one call. A level below the group's or the ClientConn's changes
// nothing.
func AtLeast(l understudy.Level) grpc.CallOption { return levelOption{level: l} }

type levelOption struct {
	grpc.EmptyCallOption
	level understudy.Level
}

// isUnreplicated takes a full method name, /service/method.
func (c *config) isUnreplicated(method string) bool {
	service, _, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	return c.unreplicated[service]
}
