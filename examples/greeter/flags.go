package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/understudy-rpc/understudy"
)

// What can be set on the command line. See the flags' usage.
type (
	runConfig struct {
		duration  time.Duration
		killEvery time.Duration
		noKill    bool
		callers   int
		replicas  int
		level     understudy.Level
		etcd      string // empty: an embedded one
		logs      string // empty: nowhere
	}
	replicaConfig struct {
		advertise, health                string // empty: the address of listen, and no probes
		replace                          string // empty: no group
		tls, etcdTLS                     identity
		name, listen, peers, etcd, group string
		level                            understudy.Level
		verbose                          bool
		control                          bool
	}
	clientConfig struct {
		tls, etcdTLS identity
		etcd, group  string
		callers      int
		duration     time.Duration // 0: for ever
		verbose      bool
		control      bool
	}
	etcdConfig struct {
		listen string
	}
)

const (
	defaultEtcd    = "127.0.0.1:2379"
	defaultGroup   = "greeter"
	defaultCallers = 16
	maxReplicas    = 26 // a to z
	maxCallers     = 10000
)

// parse reads the flags of one subcommand: declare declares them, check looks at them together.
// Errors, usage and help have been written to errOut when it returns an error, which is
// flag.ErrHelp when help was asked for.
func parse(subcommand string, args []string, errOut io.Writer, declare func(*flag.FlagSet), check func() error) error {
	flags := flag.NewFlagSet(strings.TrimSpace("greeter "+subcommand), flag.ContinueOnError)
	flags.SetOutput(errOut)
	declare(flags)
	err := flags.Parse(args)
	if err != nil {
		return err
	}
	if flags.NArg() > 0 {
		err = fmt.Errorf("what is %q? Subcommands, replica, client and etcd, come first", flags.Arg(0))
	} else {
		err = check()
	}
	if err != nil {
		fmt.Fprintf(errOut, "%s: %v\n", flags.Name(), err)
	}
	return err
}

func parseRun(args []string, errOut io.Writer) (cfg runConfig, err error) {
	err = parse("", args, errOut, func(f *flag.FlagSet) {
		f.DurationVar(&cfg.duration, "duration", 20*time.Second, "how long the callers call")
		f.DurationVar(&cfg.killEvery, "kill-every", 3*time.Second,
			"how often the primary is killed; it is started again 1 s later")
		f.BoolVar(&cfg.noKill, "no-kill", false, "kill nobody")
		f.IntVar(&cfg.callers, "callers", defaultCallers, "how many callers, each with one call at a time")
		f.IntVar(&cfg.replicas, "replicas", 3, "how many replicas, each a process of its own")
		f.StringVar(&cfg.etcd, "etcd", "",
			"`host:port[,host:port]` of an etcd to use instead of an embedded one; the group has a new name in it")
		f.StringVar(&cfg.logs, "logs", "", "an existing `folder` for all that the replicas and the client log")
		levelVar(f, &cfg.level)
	}, func() error {
		return errors.Join(
			positive("duration", cfg.duration),
			positive("kill-every", cfg.killEvery),
			within("callers", cfg.callers, 1, maxCallers),
			within("replicas", cfg.replicas, 1, maxReplicas),
			complain(cfg.replicas == 1 && !cfg.noKill, "--replicas 1 leaves nobody to take over: add --no-kill"),
			endpoints(cfg.etcd, true),
		)
	})
	return cfg, err
}

func parseReplica(args []string, errOut io.Writer) (cfg replicaConfig, err error) {
	err = parse("replica", args, errOut, func(f *flag.FlagSet) {
		f.StringVar(&cfg.name, "name", "", "the replica's `name`, which outlives its processes")
		f.StringVar(&cfg.listen, "listen", "127.0.0.1:0", "`host:port` to serve on")
		f.StringVar(&cfg.peers, "peers", "127.0.0.1:0",
			"`host:port` for the other replicas; with a port of its own, a replica that was killed is back at once")
		f.StringVar(&cfg.advertise, "advertise", "", "`host:port` that clients dial (default what --listen says)")
		f.StringVar(&cfg.health, "health", "", "`host:port` for probes (grpc.health.v1, in plaintext); none by default")
		f.StringVar(&cfg.replace, "replace-group", "", "begin the group with this `id`, whose state is lost, anew")
		tlsVars(f, &cfg.tls, &cfg.etcdTLS)
		groupVars(f, &cfg.etcd, &cfg.group, &cfg.verbose, &cfg.control)
		levelVar(f, &cfg.level)
	}, func() error {
		return errors.Join(complain(cfg.name == "", "--name is missing"), endpoints(cfg.etcd, false))
	})
	return cfg, err
}

func parseClient(args []string, errOut io.Writer) (cfg clientConfig, err error) {
	err = parse("client", args, errOut, func(f *flag.FlagSet) {
		f.IntVar(&cfg.callers, "callers", defaultCallers, "how many callers, each with one call at a time")
		f.DurationVar(&cfg.duration, "duration", 0, "how long they call; 0 is until Ctrl-C")
		tlsVars(f, &cfg.tls, &cfg.etcdTLS)
		groupVars(f, &cfg.etcd, &cfg.group, &cfg.verbose, &cfg.control)
	}, func() error {
		return errors.Join(
			within("callers", cfg.callers, 1, maxCallers),
			complain(cfg.duration < 0, "--duration can't be negative"),
			endpoints(cfg.etcd, false),
		)
	})
	return cfg, err
}

func parseEtcd(args []string, errOut io.Writer) (cfg etcdConfig, err error) {
	err = parse("etcd", args, errOut, func(f *flag.FlagSet) {
		f.StringVar(&cfg.listen, "listen", defaultEtcd, "`host:port` to serve clients on")
	}, func() error { return endpoints(cfg.listen, false) })
	return cfg, err
}

func levelVar(f *flag.FlagSet, level *understudy.Level) {
	f.Func("level", "the group's `level`: reflected, direct or stable (default reflected)", func(s string) (err error) {
		*level, err = understudy.ParseLevel(s)
		return err
	})
}

func tlsVars(f *flag.FlagSet, group, etcd *identity) {
	f.StringVar((*string)(group), "tls", "", "`folder` with ca.crt, tls.crt and tls.key; plaintext without")
	f.StringVar((*string)(etcd), "etcd-tls", "", "the same for the connection to etcd")
}

func groupVars(f *flag.FlagSet, etcd, group *string, verbose, control *bool) {
	f.StringVar(etcd, "etcd", defaultEtcd, "`host:port[,host:port]` of the etcd")
	f.StringVar(group, "group", defaultGroup, "the group's `name`")
	f.BoolVar(verbose, "verbose", false, "log everything to stderr, not only warnings")
	f.BoolVar(control, "control", false,
		"take commands from stdin and write events to stdout, as the parent process does")
}

func positive(name string, d time.Duration) error {
	return complain(d <= 0, "--%s must be positive", name)
}

func within(name string, n, least, most int) error {
	return complain(n < least || n > most, "--%s must be from %d to %d", name, least, most)
}

func complain(wrong bool, format string, args ...any) error {
	if !wrong {
		return nil
	}
	return fmt.Errorf(format, args...)
}

// endpoints checks a list of host:port.
func endpoints(list string, mayBeEmpty bool) error {
	if list == "" && mayBeEmpty {
		return nil
	}
	for _, hostport := range strings.Split(list, ",") {
		if host, port, err := net.SplitHostPort(hostport); err != nil || host == "" || port == "" {
			return fmt.Errorf("%q is no host:port", hostport)
		}
	}
	return nil
}
