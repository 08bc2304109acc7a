//go:build linux

package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// A kind is a kind of fault. make makes one in a phase, and says what it did; "" means that it
// can't be made now.
type kind struct {
	name   string
	weight int // 0: it is drawn only where it is asked for by name
	make   func(context.Context, *phase) (what string, err error)
}

// spares says whether a fault of this kind leaves every replica as it is: who leads, leads on, and
// no incarnation ends.
func (k kind) spares() bool {
	return strings.HasPrefix(k.name, "etcd") || strings.HasPrefix(k.name, "client") && k.name != clientAndPrimary &&
		k.name != clientLeft ||
		k.name == keysDeleted || k.name == twinStarted
}

var kinds = []kind{
	{"primary killed", 5, func(ctx context.Context, p *phase) (string, error) {
		return p.killReplica(ctx, p.primary(), nil)
	}},
	{"backup killed", 4, func(ctx context.Context, p *phase) (string, error) {
		return p.killReplica(ctx, p.backup(), nil)
	}},
	{"primary stopped", 4, func(_ context.Context, p *phase) (string, error) { return p.stopNode(p.primary()) }},
	{"backup stopped", 3, func(_ context.Context, p *phase) (string, error) { return p.stopNode(p.backup()) }},
	{"client killed", 2, func(_ context.Context, p *phase) (string, error) { return p.killClient(p.client()), nil }},
	{"client stopped", 2, func(_ context.Context, p *phase) (string, error) { return p.stopNode(p.client()) }},
	{clientAndPrimary, 3, func(ctx context.Context, p *phase) (string, error) {
		if x := p.client(); x != nil {
			return p.killReplica(ctx, p.primary(), x)
		}
		return "", nil
	}},
	{"partition of two sets", 4, func(_ context.Context, p *phase) (string, error) {
		return p.partition(p.twoSets(allHosts()))
	}},
	{"primary cut off from backups", 3, cutFromBackups},
	{"primary cut off from etcd", 3, cutFromEtcd},
	{"replica cut off from all", 3, func(_ context.Context, p *phase) (string, error) {
		r := replicaHosts[p.rng.IntN(len(replicaHosts))]
		return p.partition([]string{r}, others(allHosts(), r))
	}},
	{clientLeft, 3, leaveClient},
	{etcdPartitioned, 2, func(_ context.Context, p *phase) (string, error) {
		return p.partition(p.twoSets(etcdHosts))
	}},
	{"one-way drop", 5, oneWay},
	{"connections reset", 4, resetConnections},
	{stepped, 5, stepClock},
	{"etcd node killed", 2, func(_ context.Context, p *phase) (string, error) {
		return p.loseEtcd(p.etcdNode(), true)
	}},
	{"etcd node stopped", 2, func(_ context.Context, p *phase) (string, error) {
		return p.loseEtcd(p.etcdNode(), false)
	}},
	{"etcd leader killed", 2, func(ctx context.Context, p *phase) (string, error) {
		return p.loseEtcd(p.etcdLeader(ctx), true)
	}},
	{"etcd leader stopped", 2, func(ctx context.Context, p *phase) (string, error) {
		return p.loseEtcd(p.etcdLeader(ctx), false)
	}},
	{"etcd quorum lost", 3, loseQuorum},
	{"etcd emptied", 2, emptyEtcd},
	{"etcd restored", 3, restoreEtcd},
	{keysDeleted, 3, deleteKeys},
	{"primary killed, an etcd node hangs", 2, stopEtcdAndKill},
	{twinStarted, 3, twin},
	{"replica terminated", 4, terminate},
	{"address reused", 2, reuseAddress},
	{"connections half-open", 3, strand},
}

const (
	stepped          = "clock stepped"
	etcdPartitioned  = "etcd partitioned"
	clientAndPrimary = "client killed with the primary"
	clientLeft       = "client left with the primary"
	keysDeleted      = "keys deleted"
	twinStarted      = "twin started"
)

// named returns the kinds of these names, or without names those that are drawn by themselves.
func named(names []string) ([]kind, error) {
	var of []kind
	for _, name := range names {
		i := slices.IndexFunc(kinds, func(k kind) bool { return k.name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no fault %q", name)
		}
		k := kinds[i]
		k.weight = max(1, k.weight)
		of = append(of, k)
	}
	if len(names) == 0 {
		of = slices.DeleteFunc(slices.Clone(kinds), func(k kind) bool { return k.weight == 0 })
	}
	return of, nil
}

// draw draws a kind of fault.
func draw(rng *rand.Rand, kinds []kind) kind {
	sum := 0
	for _, k := range kinds {
		sum += k.weight
	}
	at := rng.IntN(sum)
	for _, k := range kinds {
		if at -= k.weight; at < 0 {
			return k
		}
	}
	panic("unreachable")
}

// pick draws one of those for which ok holds, or returns nil.
func (p *phase) pick(nodes []*node, ok func(*node) bool) *node {
	nodes = slices.DeleteFunc(slices.Clone(nodes), func(n *node) bool { return !ok(n) })
	if len(nodes) == 0 {
		return nil
	}
	return nodes[p.rng.IntN(len(nodes))]
}

func (p *phase) primary() *node {
	leader, err := p.w.leader()
	if err != nil {
		return nil
	}
	return leader
}

func (p *phase) backup() *node {
	leader := p.primary()
	return p.pick(p.w.replicas, func(n *node) bool { return n.runs() && n != leader })
}

func (p *phase) client() *node { return p.pick(p.w.clients, (*node).runs) }

// killReplica kills a replica, and a client at the same moment unless that is nil. The replica is
// stopped first, and etcd asked who is in-sync: the last one alive is spared, since nothing is on
// disk.
func (p *phase) killReplica(ctx context.Context, r, client *node) (string, error) {
	if r == nil {
		return "", nil
	}
	if err := r.stop(); err != nil {
		return "", err
	}
	if !p.survive(ctx, r) {
		return "", r.proceed()
	}
	what := r.host + " is killed"
	if client != nil {
		what = fmt.Sprintf("%s and %s are killed", client.host, r.host)
		client.kill()
		p.clientKilled = true
	}
	r.kill()
	p.replicaHurt = true
	return what, nil
}

// survive says whether another replica is in-sync, and has a process.
func (p *phase) survive(ctx context.Context, r *node) bool {
	if p.w.kept { // what etcd says isn't so
		return false
	}
	s, err := p.w.read(ctx)
	return err == nil && slices.ContainsFunc(p.w.replicas, func(n *node) bool {
		now, ok := s.Replica(n.host)
		return n != r && n.process != nil && ok && s.IsInSync(now.Member)
	})
}

func (p *phase) killClient(x *node) string {
	if x == nil {
		return ""
	}
	x.kill()
	p.clientKilled = true
	return x.host + " is killed"
}

func (p *phase) stopNode(n *node) (string, error) {
	if n == nil {
		return "", nil
	}
	p.hurt(n.host)
	return n.host + " is stopped", n.stop()
}

// hurt notes who can't be counted on.
func (p *phase) hurt(host string) {
	if slices.Contains(clientHosts, host) && p.clientAway == 0 {
		p.clientAway = now()
	}
	p.replicaHurt = p.replicaHurt || slices.Contains(replicaHosts, host)
}

// drop loses what goes in these directions, and notes who doesn't hear whom.
func (p *phase) drop(pairs []pair) error {
	for _, d := range pairs {
		if !slices.Contains(etcdHosts, d.from) && !slices.Contains(etcdHosts, d.to) {
			p.hurt(d.from)
			p.hurt(d.to)
		} else if slices.Contains(replicaHosts, d.from) || slices.Contains(replicaHosts, d.to) {
			p.replicaHurt = true
		}
	}
	return p.w.net.drop(pairs)
}

// partition cuts two sets off from each other.
func (p *phase) partition(a, b []string) (string, error) {
	return fmt.Sprintf("%s | %s", strings.Join(a, " "), strings.Join(b, " ")),
		p.drop(append(directions(a, b), directions(b, a)...))
}

func directions(from, to []string) (pairs []pair) {
	for _, f := range from {
		for _, t := range to {
			pairs = append(pairs, pair{f, t})
		}
	}
	return pairs
}

func others(hosts []string, but ...string) []string {
	return slices.DeleteFunc(slices.Clone(hosts), func(h string) bool { return slices.Contains(but, h) })
}

// twoSets draws two sets, neither empty, that are all hosts.
func (p *phase) twoSets(hosts []string) (a, b []string) {
	hosts = slices.Clone(hosts)
	p.rng.Shuffle(len(hosts), func(i, j int) { hosts[i], hosts[j] = hosts[j], hosts[i] })
	n := 1 + p.rng.IntN(len(hosts)-1)
	return slices.Sorted(slices.Values(hosts[:n])), slices.Sorted(slices.Values(hosts[n:]))
}

func cutFromBackups(_ context.Context, p *phase) (string, error) {
	r := p.primary()
	if r == nil {
		return "", nil
	}
	return p.partition([]string{r.host}, others(replicaHosts, r.host))
}

func cutFromEtcd(_ context.Context, p *phase) (string, error) {
	r := p.primary()
	if r == nil {
		return "", nil
	}
	return p.partition([]string{r.host}, etcdHosts)
}

// leaveClient leaves one client on the primary's side of a partition, and everybody else on the
// other.
func leaveClient(_ context.Context, p *phase) (string, error) {
	r, x := p.primary(), p.client()
	if r == nil || x == nil {
		return "", nil
	}
	return p.partition([]string{r.host, x.host}, others(allHosts(), r.host, x.host))
}

// oneWay loses what one set sends to another.
func oneWay(_ context.Context, p *phase) (string, error) {
	a, b := p.twoSets(allHosts())
	if p.rng.IntN(2) == 0 { // one link, with a replica at an end
		r := replicaHosts[p.rng.IntN(len(replicaHosts))]
		rest := others(allHosts(), r)
		a, b = []string{r}, []string{rest[p.rng.IntN(len(rest))]}
		if p.rng.IntN(2) == 0 {
			a, b = b, a
		}
	}
	return fmt.Sprintf("%s -> %s", strings.Join(a, " "), strings.Join(b, " ")), p.drop(directions(a, b))
}

// resetConnections resets every connection of a replica, or those to one host.
func resetConnections(_ context.Context, p *phase) (string, error) {
	r := replicaHosts[p.rng.IntN(len(replicaHosts))]
	with := others(allHosts(), r)
	if p.rng.IntN(2) == 0 {
		i := p.rng.IntN(len(with))
		with = with[i : i+1]
	}
	for _, h := range with {
		if err := p.w.net.reset(r, h); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%s with %s", r, strings.Join(with, " ")), nil
}

// stepClock steps the wall clock of a replica or a client, by up to a minute in either way; healing
// steps it back.
func stepClock(ctx context.Context, p *phase) (string, error) {
	n := p.pick(slices.Concat(p.w.replicas, p.w.clients), (*node).runs)
	if p.rng.IntN(2) == 0 {
		n = p.primary()
	}
	if n == nil {
		return "", nil
	}
	off := time.Duration(p.rng.IntN(int(time.Second)))
	if p.rng.IntN(2) == 0 {
		off *= 60
	}
	if p.rng.IntN(2) == 0 {
		off = -off
	}
	n.off = true
	return fmt.Sprintf("%s by %v", n.host, off.Round(time.Millisecond)), n.stepClock(ctx, off)
}

func (p *phase) etcdNode() *node { return p.pick(p.w.etcds, (*node).runs) }

// etcdLeader is the node that its nodes elected, or nil.
func (p *phase) etcdLeader(ctx context.Context) *node {
	for _, n := range p.w.etcds {
		if !n.runs() {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		s, err := p.w.etcd.Status(ctx, "http://"+p.w.net.addr(n.host)+":2379")
		cancel()
		if err == nil && s.Leader == s.Header.MemberId {
			return n
		}
	}
	return nil
}

// loseEtcd kills or stops a node, unless another is lost: quorums are lost by loseQuorum.
func (p *phase) loseEtcd(n *node, kill bool) (string, error) {
	if n == nil || slices.ContainsFunc(p.w.etcds, func(n *node) bool { return !n.runs() }) {
		return "", nil
	}
	if kill {
		n.kill()
		return n.host + " is killed", nil
	}
	return n.host + " is stopped", n.stop()
}

// loseQuorum kills or stops two nodes or all three, for longer than a primary may go on without
// etcd (A).
func loseQuorum(_ context.Context, p *phase) (string, error) {
	if slices.ContainsFunc(p.w.etcds, func(n *node) bool { return !n.runs() }) {
		return "", nil
	}
	nodes := slices.Clone(p.w.etcds)
	p.rng.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
	var what []string
	for _, n := range nodes[:2+p.rng.IntN(2)] {
		if p.rng.IntN(2) == 0 {
			n.kill()
			what = append(what, n.host+" is killed")
			continue
		}
		if err := n.stop(); err != nil {
			return "", err
		}
		what = append(what, n.host+" is stopped")
	}
	p.hold = max(p.hold, authority+time.Duration(200+p.rng.IntN(2800))*time.Millisecond)
	return strings.Join(what, ", "), nil
}
