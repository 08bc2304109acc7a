package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// What can be set on the command line. See the flags' usage.
type (
	config struct {
		Systems  []string      `json:"systems"`
		Callers  []int         `json:"callers"`
		Rounds   int           `json:"rounds"`
		Bound    time.Duration `json:"bound"` // of the rounds' time: fewer, if they take longer; 0: none
		Window   time.Duration `json:"window"`
		WarmUp   time.Duration `json:"warm_up"` // not measured, before each window
		Replicas int           `json:"replicas"`
		Request  int           `json:"request"`  // bytes
		Deadline time.Duration `json:"deadline"` // of each call; 0: none
		Delay    time.Duration `json:"delay"`    // one way
		Tight    bool          `json:"tight"`
		Sessions int           `json:"sessions"` // of the client process: each has a connection of its own; 0: 1
		Groups   int           `json:"groups"`   // of this library's, in each server process; 0: 1
		Filled   int           `json:"filled"`   // keys that are there before the first call
		Think    time.Duration `json:"think"`    // between a caller's calls
		// how long a peer's client waits before it asks another server; 0: it only knows the first
		Attempt    time.Duration `json:"attempt"`
		Program    string        `json:"-"` // of the servers and the client; empty: this one
		JSON       bool          `json:"-"`
		Profile    string        `json:"-"` // folder; empty: none
		ProfileFor time.Duration `json:"-"`
	}
	serverConfig struct {
		system      string
		name        string
		folder      string
		peers       string // host:port for the other servers
		etcd, group string
		delay       time.Duration
		tight       bool
		groups      int
		filled      int
	}
	clientConfig struct {
		system      string
		etcd, group string
		servers     []string // host:port, the primary's first
		request     int
		deadline    time.Duration
		delay       time.Duration
		sessions    int
		groups      int
		think       time.Duration
		attempt     time.Duration
	}
	breakdownConfig struct {
		folder string
		of     string // of ofs
	}
)

const (
	delayUsage = "how much longer everything takes that is sent, one way, between clients and servers and between " +
		"servers"
	callersUsage = "how many callers, each with one call at a time: `numbers`, one after the other"
	tightUsage   = "elections after about 100 ms for who has them, instead of the defaults"

	sessionsUsage = "how many connections the client has, each a session of its own"
	groupsUsage   = "how many groups each server process has a replica of"

	maxGroups   = 64
	maxDelay    = time.Second
	maxReplicas = 9
	maxCallers  = 4096
	maxRequest  = 1 << 20
)

// usageError says that the command line can't be understood; whoever made it has been told.
type usageError struct{ error }

// parse reads the flags of one subcommand: declare declares them, check looks at them together.
func parse(subcommand string, args []string, errOut io.Writer, declare func(*flag.FlagSet), check func() error) error {
	flags := flag.NewFlagSet(strings.TrimSpace("bench "+subcommand), flag.ContinueOnError)
	flags.SetOutput(errOut)
	declare(flags)
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return err
	case err != nil:
		return &usageError{err}
	}
	err := complain(flags.NArg() > 0, "what is %q?", flags.Arg(0))
	if err = errors.Join(err, check()); err != nil {
		fmt.Fprintf(errOut, "%s: %v\n", flags.Name(), err)
		return &usageError{err}
	}
	return nil
}

func parseBench(args []string, errOut io.Writer) (cfg config, err error) {
	systems, callers := strings.Join(levelNames(), ","), "1,16,64"
	err = parse("", args, errOut, func(f *flag.FlagSet) {
		f.StringVar(&systems, "systems", systems, "what is compared with plain gRPC: `names` of "+
			strings.Join(comparedNames(), ", "))
		f.StringVar(&callers, "callers", callers, callersUsage)
		f.IntVar(&cfg.Rounds, "rounds", 5,
			"how many windows of each system at each number of callers, each between two of plain gRPC")
		f.DurationVar(&cfg.Bound, "bound", 0, "fewer rounds, if they would take longer than this; 0 is no bound")
		f.DurationVar(&cfg.Window, "window", 800*time.Millisecond, "how long the callers call in one window")
		f.DurationVar(&cfg.WarmUp, "warm-up", 100*time.Millisecond, "how long they call before it, unmeasured")
		f.IntVar(&cfg.Replicas, "replicas", 3, "how many replicas, each a process of its own")
		f.IntVar(&cfg.Request, "request", 100, "`bytes` of a request's message")
		f.IntVar(&cfg.Sessions, "sessions", 1, sessionsUsage)
		f.IntVar(&cfg.Groups, "groups", 1, groupsUsage)
		f.DurationVar(&cfg.Think, "think", 0, "how long each caller waits after a call")
		f.DurationVar(&cfg.Deadline, "deadline", 10*time.Second, "of each call; 0 is none")
		f.DurationVar(&cfg.Delay, "delay", 0, delayUsage)
		f.BoolVar(&cfg.Tight, "tight", false, tightUsage)
		f.BoolVar(&cfg.JSON, "json", false, "write JSON, with every window, instead of a table")
		f.StringVar(&cfg.Profile, "profile", "",
			"an existing `folder` for profiles of every process, from one more, unmeasured window of each kind")
		f.DurationVar(&cfg.ProfileFor, "profile-for", 5*time.Second, "how long that window is")
	}, func() (err error) {
		cfg.Systems, err = systemNames(systems)
		return errors.Join(err, parseCallers(&cfg, callers),
			complain(cfg.Rounds < 1 || cfg.Bound < 0, "-rounds must be at least 1, and -bound not negative"),
			complain(cfg.Window <= 0 || cfg.WarmUp <= 0 || cfg.ProfileFor <= 0,
				"-window, -warm-up and -profile-for must be positive"),
			complain(cfg.Replicas < 1 || cfg.Replicas > maxReplicas, "-replicas must be from 1 to %d", maxReplicas),
			complain(cfg.Request < minRequest || cfg.Request > maxRequest, "-request must be from %d to %d", minRequest,
				maxRequest),
			complain(cfg.Deadline < 0, "-deadline can't be negative"),
			complain(cfg.Delay < 0 || cfg.Delay > maxDelay, "-delay must be from 0 to %v", maxDelay),
		)
	})
	return cfg, err
}

func parseCallers(cfg *config, callers string) (err error) {
	for s := range strings.SplitSeq(callers, ",") {
		n, notOne := strconv.Atoi(s)
		err = errors.Join(err,
			complain(notOne != nil || n < 1 || n > maxCallers, "-callers has %q: each is a number from 1 to %d", s,
				maxCallers))
		cfg.Callers = append(cfg.Callers, n)
	}
	return err
}

// delayText is part of a sentence.
func (cfg config) delayText() string {
	if cfg.Delay == 0 {
		return ""
	}
	return fmt.Sprintf("%v longer each way; ", cfg.Delay)
}

// limit is how long the whole may take: far longer than it does.
func (cfg config) limit() time.Duration {
	windows := len(cfg.Systems) * len(cfg.Callers) * (2 + maxRepeats) * cfg.Rounds
	all := time.Duration(windows) * (cfg.Window + cfg.WarmUp + 200*time.Millisecond)
	if cfg.Profile != "" {
		all += time.Duration(2*len(cfg.Systems)*len(cfg.Callers)) * (cfg.ProfileFor + time.Second)
	}
	return 2*all + 2*time.Minute
}

func parseServer(args []string, errOut io.Writer) (cfg serverConfig, err error) {
	if len(args) > 0 {
		cfg.system, args = args[0], args[1:]
	}
	err = parse("server", args, errOut, func(f *flag.FlagSet) {
		f.StringVar(&cfg.name, "name", "", "the server's `name`")
		f.StringVar(&cfg.folder, "folder", "", "the `folder` for who writes files")
		f.StringVar(&cfg.peers, "peers", anyPort, "`host:port` for this library's other replicas")
		f.DurationVar(&cfg.delay, "delay", 0, delayUsage)
		f.BoolVar(&cfg.tight, "tight", false, tightUsage)
		f.IntVar(&cfg.groups, "groups", 1, groupsUsage)
		f.IntVar(&cfg.filled, "filled", 0, "how many `keys` are there before the first call")
		etcdVars(f, &cfg.etcd, &cfg.group)
	}, func() error {
		return errors.Join(known(cfg.system),
			complain(cfg.groups < 1 || cfg.groups > maxGroups, "-groups must be from 1 to %d", maxGroups),
			complain(cfg.filled < 0, "-filled can't be negative"))
	})
	return cfg, err
}

func parseClient(args []string, errOut io.Writer) (cfg clientConfig, err error) {
	if len(args) > 0 {
		cfg.system, args = args[0], args[1:]
	}
	err = parse("client", args, errOut, func(f *flag.FlagSet) {
		f.Func("servers", "their `host:port`s, the primary's first", func(s string) error {
			cfg.servers = strings.Split(s, ",")
			return nil
		})
		f.IntVar(&cfg.request, "request", 100, "`bytes` of a request's message")
		f.DurationVar(&cfg.deadline, "deadline", 0, "of each call; 0 is none")
		f.DurationVar(&cfg.delay, "delay", 0, delayUsage)
		f.IntVar(&cfg.sessions, "sessions", 1, sessionsUsage)
		f.IntVar(&cfg.groups, "groups", 1, groupsUsage)
		f.DurationVar(&cfg.think, "think", 0, "how long a caller waits after each call")
		f.DurationVar(&cfg.attempt, "attempt", 0,
			"how long the client of a peer waits for a server before it asks another one; 0: it only knows the first")
		etcdVars(f, &cfg.etcd, &cfg.group)
	}, func() error {
		return errors.Join(known(cfg.system), complain(len(cfg.servers) == 0, "-servers is missing"),
			complain(cfg.sessions < 1 || cfg.groups < 1 || cfg.think < 0,
				"-sessions and -groups must be at least 1, and -think not negative"))
	})
	return cfg, err
}

func parseBreakdown(args []string, errOut io.Writer) (cfg breakdownConfig, err error) {
	if len(args) > 0 {
		cfg.folder, args = args[0], args[1:]
	}
	err = parse("breakdown FOLDER", args, errOut, func(f *flag.FlagSet) {
		f.StringVar(&cfg.of, "of", "cpu", "`what`: cpu, allocs (allocations), or bytes (allocated)")
	}, func() error {
		return errors.Join(complain(cfg.folder == "", "which folder? The one that -profile had"),
			complain(ofs[cfg.of].text == "", "-of is cpu, allocs or bytes"))
	})
	return cfg, err
}

func etcdVars(f *flag.FlagSet, etcd, group *string) {
	f.StringVar(etcd, "etcd", "", "`host:port` of the etcd")
	f.StringVar(group, "group", "", "the group's `name` in it")
}

func known(name string) error {
	_, ok := findSystem(name)
	return complain(!ok, "there is no system %q", name)
}

func complain(wrong bool, format string, args ...any) error {
	if !wrong {
		return nil
	}
	return fmt.Errorf(format, args...)
}
