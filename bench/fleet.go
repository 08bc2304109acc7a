package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// A fleet is the processes of one system: its servers, and one client whose callers call them.
type fleet struct {
	system  system
	cfg     config
	common  []string // arguments of all its processes
	folder  string   // of the servers' files, for as long as the fleet is there
	addrs   []string // of the servers, as the client was told: the primary's first
	peers   []string // where each server is for the others: one that is started again comes back at once
	servers []*child
	client  *child
	expect  state // what every server's state must be by now; History is the primary's
}

const (
	startTimeout = 30 * time.Second
	askTimeout   = 5 * time.Second
	loadTimeout  = 30 * time.Second // beyond the load's own time
	quietTimeout = 10 * time.Second
	pollEvery    = 10 * time.Millisecond
	stopGrace    = 2 * time.Second
)

// startFleet starts the servers, and when they have come together the client. stop must be called
// even after an error.
func startFleet(ctx context.Context, s system, cfg config, etcd string) (f *fleet, err error) {
	f = &fleet{system: s, cfg: cfg, common: []string{
		"-etcd", etcd, "-group", fmt.Sprintf("bench-%s-%x", s.name, time.Now().UnixNano()),
	}}
	f.common = with(f.common, "-delay", cfg.Delay)
	if !s.joins && cfg.Groups > 1 {
		f.common = with(f.common, "-groups", cfg.Groups)
	}
	if f.folder, err = os.MkdirTemp("", "bench-"+s.name+"-"); err != nil {
		return f, err
	}
	count := 1
	if s.replicated {
		count = cfg.Replicas
	}
	for i := range count {
		peers, err := freeAddr()
		if err != nil {
			return f, err
		}
		f.peers = append(f.peers, peers)
		p, err := f.startServer(i)
		if err != nil {
			return f, err
		}
		f.servers = append(f.servers, p)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, errors.New("the servers haven't come together"))
	defer cancel()
	if s.joins {
		if err := f.join(ctx); err != nil {
			return f, err
		}
	}
	v, err := f.await(ctx, view.whole)
	if err != nil {
		return f, err
	}
	f.addrs = []string{v.primary().Addr}
	for _, r := range v {
		if r.Addr != f.addrs[0] {
			f.addrs = append(f.addrs, r.Addr)
		}
	}
	f.client, err = f.startClient("client")
	return f, err
}

// with adds a flag unless its value is 0, which is every such flag's default: a program of another
// revision may lack what nobody asked for (revisions.go).
func with[T comparable](args []string, flag string, value T) []string {
	var none T
	if value == none {
		return args
	}
	return append(args, flag, fmt.Sprint(value))
}

// startServer starts the server at place i, once more after it has ended.
func (f *fleet) startServer(i int) (*child, error) {
	name := nameOf(i)
	args := []string{"server", f.system.name, "-name", name, "-folder", f.folder}
	if f.cfg.Program == "" { // only failovers start a server again, and an older program lacks it
		args = append(args, "-peers", f.peers[i])
	}
	if f.cfg.Tight {
		args = append(args, "-tight")
	}
	args = with(args, "-filled", f.cfg.Filled)
	return startChild(f.cfg.Program, f.system.name+" "+name, append(args, f.common...)...)
}

// startClient starts a client process of that name. The servers must be there.
func (f *fleet) startClient(name string) (*child, error) {
	args := []string{"client", f.system.name, "-servers", strings.Join(f.addrs, ","), "-request",
		fmt.Sprint(f.cfg.Request)}
	args = with(args, "-deadline", f.cfg.Deadline)
	args = with(args, "-sessions", f.cfg.Sessions)
	args = with(args, "-think", f.cfg.Think)
	args = with(args, "-attempt", f.cfg.Attempt)
	return startChild(f.cfg.Program, f.system.name+" "+name, append(args, f.common...)...)
}

// startFleets starts one of each named system, all at once. stopFleets must be called even after an
// error.
func startFleets(ctx context.Context, names []string, cfg config, etcd string) ([]*fleet, error) {
	fleets, errs := make([]*fleet, len(names)), make([]error, len(names))
	var starting sync.WaitGroup
	for i, name := range names {
		s, _ := findSystem(name)
		starting.Go(func() { fleets[i], errs[i] = startFleet(ctx, s, cfg, etcd) })
	}
	starting.Wait()
	return fleets, errors.Join(errs...)
}

func stopFleets(fleets []*fleet) {
	var stopping sync.WaitGroup
	for _, f := range fleets {
		stopping.Go(f.stop)
	}
	stopping.Wait()
}

// join tells each server of all of them.
func (f *fleet) join(ctx context.Context) error {
	v, err := f.await(ctx, func(view) error { return nil })
	if err != nil {
		return err
	}
	all := make([]peer, len(v))
	for i, r := range v {
		all[i] = peer{ID: uint64(i + 1), Name: nameOf(i), Addr: r.PeerAddr}
	}
	return f.eachServer(ctx, command{Do: doJoin, Peers: all}, startTimeout, func(int, event) {})
}

const anyPort = "127.0.0.1:0"

// nameOf is the name of the server at place i.
func nameOf(i int) string { return string(rune('a' + i)) }

// stop ends the processes, all at once, and removes their files.
func (f *fleet) stop() {
	var stopping sync.WaitGroup
	for _, p := range f.processes() {
		stopping.Go(func() { p.End(stopGrace) })
	}
	stopping.Wait()
	if f.folder != "" {
		os.RemoveAll(f.folder)
	}
}

func (f *fleet) processes() []*child {
	all := append([]*child(nil), f.servers...)
	if f.client != nil {
		all = append(all, f.client)
	}
	return all
}

// A view is what the servers said of themselves, all asked at once.
type view []serverReport

func (f *fleet) view(ctx context.Context) (view, error) {
	v := make(view, len(f.servers))
	err := f.eachServer(ctx, command{Do: doStanding}, askTimeout, func(i int, e event) {
		if e.Server != nil {
			v[i] = *e.Server
		}
	})
	return v, err
}

// leader is the place of the one that leads, in the highest epoch if several say so; -1 if none
// does.
func (v view) leader() int {
	leader := -1
	for i, r := range v {
		if r.Standing.Leads && (leader < 0 || r.Standing.Epoch > v[leader].Standing.Epoch) {
			leader = i
		}
	}
	return leader
}

func (v view) primary() serverReport { return v[v.leader()] }

// whole returns nil when one leads, and all are members.
func (v view) whole() error {
	leader := v.leader()
	if leader < 0 {
		return errors.New("nobody leads")
	}
	if n := v[leader].Standing.Members; n != len(v) {
		return fmt.Errorf("%d of %d are members", n, len(v))
	}
	return nil
}

// events counts what has happened, besides calls, at all servers.
func (v view) events() (n uint64) {
	for _, r := range v {
		n += r.Standing.Events + r.Standing.Epoch
	}
	return n
}

// executed returns nil when every server has executed just so many calls.
func (v view) executed(calls uint64) error {
	for i, r := range v {
		if r.State.Adds != calls {
			return fmt.Errorf("server %c has executed %d calls, the callers made %d", 'a'+i, r.State.Adds, calls)
		}
	}
	return nil
}

// await asks again and again until accept finds nothing to object to. When ctx ends first, the
// error has its cause and accept's last objection.
func (f *fleet) await(ctx context.Context, accept func(view) error) (view, error) {
	var objection error
	for {
		v, err := f.view(ctx)
		if err == nil {
			if err = accept(v); err == nil {
				return v, nil
			}
		}
		if ctx.Err() == nil || objection == nil { // else this view has failed only because ctx has ended
			objection = err
		}
		select {
		case <-ctx.Done():
			return v, fmt.Errorf("%s: %w: %w", f.system.name, context.Cause(ctx), objection)
		case <-time.After(pollEvery):
		}
		for _, p := range f.servers {
			select {
			case <-p.Done:
				return v, p.Why()
			default:
			}
		}
	}
}

// burst lets the callers call, and waits until every server has executed all of it: that belongs to
// the calls, too. Where callers repeat what a peer doesn't answer, as in trials of failover, a call
// may have been executed twice.
func (f *fleet) burst(ctx context.Context, callers int, d time.Duration) (loadReport, view, error) {
	e, err := f.client.ask(ctx, command{Do: doLoad, Callers: callers, For: d}, d+loadTimeout)
	if err != nil {
		return loadReport{}, nil, err
	}
	if e.Load == nil || e.Load.Calls == 0 {
		return loadReport{}, nil, fmt.Errorf("%s: the callers made no call", f.client.Name)
	}
	f.expect.Adds += uint64(e.Load.Calls)
	f.expect.Sum += e.Load.Sum
	ctx, cancel := context.WithTimeoutCause(ctx, quietTimeout, errors.New("the servers aren't even"))
	defer cancel()
	if f.system.joins && f.cfg.Attempt > 0 {
		v, err := f.await(ctx, func(v view) error { return errors.Join(v.whole(), v.alike(f.expect.Adds)) })
		if err == nil {
			f.expect.Adds, f.expect.Sum = v[0].State.Adds, v[0].State.Sum
		}
		return *e.Load, v, err
	}
	v, err := f.await(ctx, func(v view) error { return errors.Join(v.whole(), v.executed(f.expect.Adds)) })
	return *e.Load, v, err
}

// check compares the servers' states with each other, and with what the callers know.
func (f *fleet) check(ctx context.Context) error {
	v, err := f.view(ctx)
	if err != nil {
		return err
	}
	expect := f.expect
	expect.History = v.primary().State.History
	for i, r := range v {
		if r.State != expect {
			err = errors.Join(err,
				fmt.Errorf("%s: server %c has the state %+v, and should have %+v", f.system.name, 'a'+i, r.State,
					expect))
		}
	}
	return err
}

// A window is one burst of calls, and what it took.
type window struct {
	System  string    `json:"system"`
	Callers int       `json:"callers"`
	At      time.Time `json:"at"`
	loadReport
	Client  usage `json:"client"`
	Primary usage `json:"primary"`
	Backups usage `json:"backups"` // together
	// The bytes of the client's connections, at the client, and of those between servers.
	ToPrimary      traffic `json:"to_primary"`
	ToBackups      traffic `json:"to_backups"`
	BetweenServers traffic `json:"between_servers"`
	// Rest is this process's usage, etcd's among it, which serves whatever systems are up.
	Rest usage         `json:"rest"`
	Took time.Duration `json:"took"` // with the wait for the backups
}

// errDisturbed says that something has happened in a window besides calls: a replica was evicted,
// say.
var errDisturbed = errors.New("the group has changed")

func disturbed(before, after view) bool {
	return before.events() != after.events() || before.leader() != after.leader()
}

// window measures one.
func (f *fleet) window(ctx context.Context, callers int, warmUp, d time.Duration) (window, error) {
	_, v, err := f.burst(ctx, callers, warmUp)
	if err != nil {
		return window{}, err
	}
	begun := time.Now()
	before, err := f.usage(ctx)
	if err != nil {
		return window{}, err
	}
	r, after, err := f.burst(ctx, callers, d)
	if err != nil {
		return window{}, err
	}
	now, err := f.usage(ctx)
	if err != nil {
		return window{}, err
	}
	w := window{System: f.system.name, Callers: callers, At: begun, loadReport: r, Took: time.Since(begun)}
	leader := after.leader()
	for i := range f.servers {
		u := now.servers[i].since(before.servers[i])
		if i == leader {
			w.Primary = u
		} else {
			w.Backups = w.Backups.plus(u)
		}
		w.BetweenServers = w.BetweenServers.plus(u.Flows.Peers)
	}
	w.Client, w.Rest = now.client.since(before.client), now.rest.since(before.rest)
	for addr, t := range w.Client.Flows.Dialled {
		if addr == after[leader].Addr {
			w.ToPrimary = w.ToPrimary.plus(t)
		} else {
			w.ToBackups = w.ToBackups.plus(t)
		}
	}
	if disturbed(v, after) {
		return w, errDisturbed
	}
	return w, nil
}

// reading is everybody's usage at one moment of quiet.
type reading struct {
	servers      []usage
	client, rest usage
}

func (f *fleet) usage(ctx context.Context) (reading, error) {
	r := reading{servers: make([]usage, len(f.servers))}
	into := []*usage{}
	for i := range f.servers {
		into = append(into, &r.servers[i])
	}
	into = append(into, &r.client)
	err := f.each(ctx, command{Do: doUsage}, func(i int, e event) {
		if e.Usage != nil {
			*into[i] = *e.Usage
		}
	})
	if err != nil {
		return r, err
	}
	r.rest, err = readUsage(nil)
	return r, err
}

// each puts one command to all processes, the client last, and returns when each has answered or
// failed.
func (f *fleet) each(ctx context.Context, c command, then func(i int, e event)) error {
	return askAll(ctx, f.processes(), c, askTimeout, then)
}

func (f *fleet) eachServer(ctx context.Context, c command, timeout time.Duration, then func(i int, e event)) error {
	return askAll(ctx, f.servers, c, timeout, then)
}

func askAll(ctx context.Context, all []*child, c command, timeout time.Duration, then func(i int, e event)) error {
	errs := make([]error, len(all))
	var asking sync.WaitGroup
	for i, p := range all {
		asking.Go(func() {
			e, err := p.ask(ctx, c, timeout)
			if errs[i] = err; err == nil {
				then(i, e)
			}
		})
	}
	asking.Wait()
	return errors.Join(errs...)
}

// profile has every process write profiles of one burst into folder.
func (f *fleet) profile(ctx context.Context, folder string, callers int, warmUp, d time.Duration) error {
	_, v, err := f.burst(ctx, callers, warmUp)
	if err != nil {
		return err
	}
	parts, backups := []string{}, 0
	for i := range f.servers {
		if i == v.leader() {
			parts = append(parts, "primary")
			continue
		}
		backups++
		parts = append(parts, fmt.Sprintf("backup%d", backups))
	}
	parts = append(parts, "client")
	for i, p := range f.processes() {
		path := filepath.Join(folder, profiled{System: f.system.name, Callers: callers}.base()+"-"+parts[i])
		if _, err := p.ask(ctx, command{Do: doProfile, Path: path}, askTimeout); err != nil {
			return err
		}
	}
	r, after, err := f.burst(ctx, callers, d)
	if err != nil {
		return err
	}
	if err := f.each(ctx, command{Do: doProfiled}, func(int, event) {}); err != nil {
		return err
	}
	if disturbed(v, after) {
		return errDisturbed
	}
	return writeProfiled(folder, profiled{System: f.system.name, Callers: callers, Calls: r.Calls, Parts: parts})
}
