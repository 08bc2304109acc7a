package main

import (
	"errors"
	"flag"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-rpc/understudy"
)

func TestFlags(t *testing.T) {
	t.Parallel()
	run := func(args []string, out io.Writer) (any, error) { return parseRun(args, out) }
	replica := func(args []string, out io.Writer) (any, error) { return parseReplica(args, out) }
	client := func(args []string, out io.Writer) (any, error) { return parseClient(args, out) }
	etcd := func(args []string, out io.Writer) (any, error) { return parseEtcd(args, out) }
	for _, c := range []struct {
		parse   func([]string, io.Writer) (any, error)
		args    string
		want    any
		refused string // what is said of args that are no good
	}{
		{parse: run, want: runConfig{duration: 20 * time.Second, killEvery: 3 * time.Second, callers: 16, replicas: 3}},
		{parse: run, args: "--duration 1m --kill-every 1500ms --callers 4 --level direct --replicas 5 --etcd " +
			"10.0.0.1:2379,etcd:2379 --no-kill --logs /tmp",
			want: runConfig{duration: time.Minute, killEvery: 1500 * time.Millisecond, callers: 4,
				level: understudy.Direct, replicas: 5,
				etcd: "10.0.0.1:2379,etcd:2379", noKill: true, logs: "/tmp"}},
		{parse: run, args: "-level Stable",
			want: runConfig{duration: 20 * time.Second, killEvery: 3 * time.Second, callers: 16, replicas: 3,
				level: understudy.Stable}},
		{parse: run, args: "--level reflected --replicas 1 --no-kill",
			want: runConfig{duration: 20 * time.Second, killEvery: 3 * time.Second, callers: 16, replicas: 1,
				noKill: true}},
		{parse: run, args: "--replicas 1", refused: "--no-kill"},
		{parse: run, args: "--replicas 0 --no-kill", refused: "--replicas must be from 1 to 26"},
		{parse: run, args: "--replicas 27", refused: "--replicas must be from 1 to 26"},
		{parse: run, args: "--callers 0", refused: "--callers must be from 1 to 10000"},
		{parse: run, args: "--duration 0s", refused: "--duration must be positive"},
		{parse: run, args: "--kill-every -1s", refused: "--kill-every must be positive"},
		{parse: run, args: "--level raft", refused: `unknown level "raft"`},
		{parse: run, args: "--etcd localhost", refused: `"localhost" is no host:port`},
		{parse: run, args: "--etcd a:1,", refused: `"" is no host:port`},
		{parse: run, args: "--etcd http://a:1", refused: "no host:port"},
		{parse: run, args: "--chaos", refused: "flag provided but not defined"},
		{parse: run, args: "--no-kill replica", refused: `what is "replica"?`},
		{parse: replica, args: "--name a",
			want: replicaConfig{name: "a", listen: "127.0.0.1:0", peers: "127.0.0.1:0", etcd: "127.0.0.1:2379",
				group: "greeter"}},
		{parse: replica, args: "--name b --listen :50051 --peers 10.0.0.1:50052 --etcd h:1 --group g --level stable " +
			"--verbose --control",
			want: replicaConfig{name: "b", listen: ":50051", peers: "10.0.0.1:50052", etcd: "h:1", group: "g",
				level: understudy.Stable, verbose: true, control: true}},
		{parse: replica, refused: "--name is missing"},
		{parse: replica, args: "--name a --etcd=", refused: "no host:port"},
		{parse: client, want: clientConfig{etcd: "127.0.0.1:2379", group: "greeter", callers: 16}},
		{parse: client, args: "--callers 2 --duration 5s --etcd h:1 --group g --verbose --control",
			want: clientConfig{etcd: "h:1", group: "g", callers: 2, duration: 5 * time.Second, verbose: true,
				control: true}},
		{parse: client, args: "--duration -5s", refused: "--duration can't be negative"},
		{parse: client, args: "--callers 10001", refused: "--callers must be"},
		{parse: etcd, want: etcdConfig{listen: "127.0.0.1:2379"}},
		{parse: etcd, args: "--listen 127.0.0.1:0", want: etcdConfig{listen: "127.0.0.1:0"}},
		{parse: etcd, args: "--listen 2379", refused: "no host:port"},
	} {
		var said strings.Builder
		got, err := c.parse(strings.Fields(c.args), &said)
		if c.refused != "" {
			if err == nil || !strings.Contains(said.String(), c.refused) {
				t.Errorf("%s: %v, and said %q", c.args, err, said.String())
			}
			continue
		}
		if err != nil || said.Len() > 0 {
			t.Errorf("%s: %v, and said %q", c.args, err, said.String())
		}
		if diff := cmp.Diff(c.want, got,
			cmp.AllowUnexported(runConfig{}, replicaConfig{}, clientConfig{}, etcdConfig{})); diff != "" {
			t.Errorf("%s: %s", c.args, diff)
		}
	}
}

func TestHelp(t *testing.T) {
	t.Parallel()
	var said strings.Builder
	if _, err := parseRun([]string{"--help"}, &said); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("help is %v", err)
	}
	for _, name := range []string{"duration", "kill-every", "callers", "level", "replicas", "etcd", "no-kill"} {
		if !strings.Contains(said.String(), "-"+name) {
			t.Errorf("the help doesn't name --%s:\n%s", name, said.String())
		}
	}
}

func TestDispatchRefuses(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]int{"--help": 0, "replica -h": 0, "client --chaos": 2, "etcd x": 2,
		"replicas": 2, "replica": 2} {
		if got := dispatch(strings.Fields(args), strings.NewReader(""), io.Discard, io.Discard); got != want {
			t.Errorf("%s: %d, want %d", args, got, want)
		}
	}
}
