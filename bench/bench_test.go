package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/understudy-rpc/understudy/internal/etcdnode"
)

// The test binary is also the program that startChild runs.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "server" || os.Args[1] == "client") {
		os.Exit(dispatch(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/understudy-rpc/understudy/internal/process.startAll"))
}

// The whole, with real processes, in windows that are too short to mean anything.
func TestBench(t *testing.T) {
	if testing.Short() {
		t.Skip("starts an etcd and six processes")
	}
	folder := t.TempDir()
	cfg := config{
		Systems: []string{"reflected"}, Callers: []int{2}, Rounds: 2, Window: 100 * time.Millisecond,
		WarmUp:   20 * time.Millisecond,
		Replicas: 3, Request: 100, Deadline: 10 * time.Second, Profile: folder, ProfileFor: 100 * time.Millisecond,
	}
	b := &bench{cfg: cfg, progress: io.Discard, report: report{Config: cfg, Machine: thisMachine()}}
	if err := b.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(b.report.Rounds); n != cfg.Rounds {
		t.Errorf("%d rounds, want %d", n, cfg.Rounds)
	}
	for _, r := range b.report.Rounds {
		if r.Before.System != "plain" || r.Window.System != "reflected" || r.After.System != "plain" {
			t.Errorf("windows of %s, %s, %s", r.Before.System, r.Window.System, r.After.System)
		}
	}
	var text, asJSON bytes.Buffer
	if err := errors.Join(b.report.writeText(&text), b.report.writeJSON(&asJSON)); err != nil {
		t.Fatal(err)
	}
	t.Log(text.String())
	var back report
	if err := json.Unmarshal(asJSON.Bytes(), &back); err != nil || len(back.Figures) != len(metrics) {
		t.Errorf("JSON has %d figures, want %d: %v", len(back.Figures), len(metrics), err)
	}
	// What has no counterpart in plain gRPC, and what has.
	for _, f := range back.Figures {
		switch f.Metric {
		case "cpu_backups", "allocs_backups", "alloc_bytes_backups", "bytes_backups", "bytes_servers":
			if f.Value <= 0 || f.Plain != 0 || f.Ratio != 0 {
				t.Errorf("%+v", f)
			}
		default:
			if f.Value <= 0 || f.Plain <= 0 || f.Ratio <= 0 {
				t.Errorf("%+v", f)
			}
		}
	}

	var table bytes.Buffer
	for of := range ofs {
		if err := breakdownMain(breakdownConfig{folder: folder, of: of}, &table); err != nil {
			t.Error(err)
		}
	}
	t.Log(table.String())
	for _, p := range []string{"plain client", "plain primary", "reflected backups", "reflected client",
		"reflected primary"} {
		if strings.Count(table.String(), p) != len(ofs) {
			t.Errorf("%q isn't in each breakdown", p)
		}
	}
	if mutexes, _ := filepath.Glob(filepath.Join(folder, "*.mutex.pprof")); len(mutexes) != 6 {
		t.Errorf("profiles of mutexes: %q", mutexes)
	}
}

// Several sessions, several groups, a state that isn't empty, and pauses.
func TestScale(t *testing.T) {
	if testing.Short() {
		t.Skip("starts an etcd and four processes")
	}
	etcd, err := etcdnode.Start(t.Context(), etcdnode.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := etcd.Stop(); err != nil {
			t.Error(err)
		}
	}()
	s, _ := findSystem("reflected")
	cfg := config{Replicas: 2, Request: minRequest, Deadline: 10 * time.Second, Sessions: 2, Groups: 2, Filled: 10,
		Think: time.Millisecond}
	f, err := startFleet(t.Context(), s, cfg, etcd.Addr)
	defer f.stop()
	if err != nil {
		t.Fatal(err)
	}
	r, _, err := f.burst(t.Context(), 3, 50*time.Millisecond)
	if err != nil || r.Calls > 3*50 {
		t.Errorf("%d calls, %v", r.Calls, err)
	}
	if err := f.check(t.Context()); err != nil {
		t.Error(err)
	}
}

// A server that lacks a call, or has one too many, is found; so is a server that dies.
func TestFleetIsChecked(t *testing.T) {
	if testing.Short() {
		t.Skip("starts two processes")
	}
	cfg := config{Replicas: 1, Request: 100, Deadline: 10 * time.Second}
	f, err := startFleet(t.Context(), systems[0], cfg, "127.0.0.1:1")
	t.Cleanup(f.stop)
	if err != nil {
		t.Fatal(err)
	}
	w, err := f.window(t.Context(), 3, time.Millisecond, 10*time.Millisecond)
	if err != nil || w.Calls == 0 || w.ToPrimary.In == 0 || w.ToPrimary.Out == 0 || w.Primary.Flows.Accepted.In == 0 {
		t.Errorf("%+v, %v", w, err)
	}
	if err := f.check(t.Context()); err != nil {
		t.Error(err)
	}
	f.expect.Sum++
	if err := f.check(t.Context()); err == nil || !strings.Contains(err.Error(), "should have") {
		t.Errorf("a sum that differs: %v", err)
	}
	f.expect.Adds++
	short, cancel := context.WithTimeout(t.Context(), time.Second) // long enough for one look on a busy machine
	defer cancel()
	if _, _, err := f.burst(short, 1, time.Millisecond); err == nil || !strings.Contains(err.Error(), "has executed") {
		t.Errorf("a call too few: %v", err)
	}
	f.servers[0].KillAndWait()
	if _, err := f.window(t.Context(), 1, time.Millisecond, time.Millisecond); err == nil {
		t.Error("the server's death wasn't noticed")
	}
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"-systems", "paxos"}, {"-systems", "plain"}, {"-callers", "0"}, {"-callers", "1,x"}, {"-rounds", "0"},
		{"-window", "0s"}, {"-replicas", "0"},
		{"-request", "10"}, {"-delay", "-1ms"}, {"-bound", "-1s"}, {"quick", "-bound", "0s"},
		{"peers", "-window", "0s"}, {"scale", "-bound", "0s"}, {"scale", "more"}, {"failover", "-runs", "-1"},
		{"failover", "-peers", "paxos"}, {"server", "plain", "-groups", "0"},
		{"client", "plain", "-servers", "x", "-sessions", "0"}, {"peers", "-systems", "plain"}, {"-deadline", "-1s"},
		{"more"},
		{"revisions"}, {"revisions", "-base", "HEAD", "-rounds", "5"}, {"revisions", "-base", "HEAD", "-callers", "x"},
		{"revisions", "-base", "HEAD", "-limit", "0"},
		{"server", "paxos"}, {"server"}, {"client", "plain"}, {"client"}, {"breakdown"},
		{"breakdown", "x", "-of", "time"},
	} {
		if code := dispatch(args, strings.NewReader(""), io.Discard, io.Discard); code != 2 {
			t.Errorf("%q: exit code %d, want 2", args, code)
		}
	}
	if code := dispatch([]string{"-h"}, strings.NewReader(""), io.Discard, io.Discard); code != 0 {
		t.Errorf("-h: exit code %d", code)
	}
	cfg, err := parseBench([]string{"-systems", "stable,direct", "-callers", "2,3"}, io.Discard)
	if err != nil || !slices.Equal(cfg.Systems, []string{"stable", "direct"}) ||
		!slices.Equal(cfg.Callers, []int{2, 3}) {
		t.Errorf("%+v, %v", cfg, err)
	}
}
