package explore

import (
	"fmt"
	"strings"

	"github.com/understudy-rpc/understudy/orderstate"
)

const (
	maxReplicas = 3
	maxSources  = 2
	maxNodes    = maxReplicas + maxSources
	maxParts    = 1 + maxNodes + maxNodes*maxNodes
)

// universe is what all states of a scope share: the parts that there are.
type universe struct {
	scope    *Scope
	records  *pool[*record]
	replicas *pool[*replica]
	sources  *pool[*source]
	links    *pool[*link]
	packets  *pool[*packet]
}

func newUniverse(scope *Scope) *universe {
	return &universe{
		scope: scope, records: newPool[*record](nil), replicas: newPool(checkReplica), sources: newPool(checkSource),
		links: newPool[*link](nil), packets: newPool[*packet](nil),
	}
}

// world is one state. Its parts are shared with other states: who changes one replaces it first
// (own).
type world struct {
	*universe
	record   *record
	replicas [maxReplicas]*replica
	sources  [maxSources]*source
	links    [maxNodes * maxNodes]*link // from, to: replicas first
	owned    uint64                     // parts that are this world's own
	broken   error                      // the first rule that was broken
	said     *strings.Builder           // nil unless someone listens
}

// vector is a state by the numbers of its parts.
type vector [maxParts]uint32

// own bits.
const (
	ownRecord = iota
	ownReplica
	ownSource = ownReplica + maxReplicas
	ownLink   = ownSource + maxSources
)

func (w *world) take(bit int) (already bool) {
	already = w.owned&(1<<bit) != 0
	w.owned |= 1 << bit
	return already
}

// r returns a replica to be changed.
func (w *world) r(i int8) *replica {
	if !w.take(ownReplica + int(i)) {
		w.replicas[i] = w.replicas[i].clone()
	}
	return w.replicas[i]
}

// s returns a source to be changed.
func (w *world) s(j int8) *source {
	if !w.take(ownSource + int(j)) {
		w.sources[j] = w.sources[j].clone()
	}
	return w.sources[j]
}

// g returns the record to be changed.
func (w *world) g() *record {
	if !w.take(ownRecord) {
		c := *w.record
		w.record = &c
	}
	return w.record
}

func (w *world) setLink(at int, packets []*packet) {
	w.take(ownLink + at)
	w.links[at] = &link{packets: packets}
}

// nodes: replicas are 0…, sources from maxReplicas on.
func node(source int8) int8 { return maxReplicas + source }

func between(from, to int8) int { return int(from)*maxNodes + int(to) }

func nodeName(n int8) string {
	if n >= maxReplicas {
		return fmt.Sprintf("C%d", n-maxReplicas+1)
	}
	return string(replicaName(n))
}

func replicaName(i int8) name { return name([]byte{'S', byte('1' + i)}) }

func replicaNumber(n name) int8 { return int8(n[1] - '1') }

// deafness is the bit that says that a source and a replica can't hear each other.
func deafness(source, replica int8) uint8 { return 1 << (int(source)*maxReplicas + int(replica)) }

// sessionOf is the session of a source: they are opened before all else.
func sessionOf(source int8) session { return session(source + 1) }

func sourceOf(n session) int8 { return int8(n - 1) }

func (w *world) alive(n int8) bool {
	if n >= maxReplicas {
		return w.sources[n-maxReplicas].fate == up
	}
	return w.replicas[n].fate == up
}

func (w *world) inSync(i int8) bool { return w.record.inSync&(1<<i) != 0 }

// cutOff says whether two can't hear each other.
func (w *world) cutOff(a, b int8) bool {
	if a > b {
		a, b = b, a
	}
	return b >= maxReplicas && a < maxReplicas && w.record.broken&deafness(b-maxReplicas, a) != 0
}

func (w *world) intern(p *packet) *packet {
	id, p, _ := w.packets.intern(p)
	p.id = id
	return p
}

// send puts a packet on a link. An acknowledgement stands for the one before it.
func (w *world) send(from, to int8, p *packet) {
	if !w.alive(to) || w.cutOff(from, to) {
		return
	}
	at := between(from, to)
	packets := w.links[at].packets
	if n := len(packets); n > 0 && p.kind == ack && packets[n-1].kind == ack {
		packets = packets[:n-1]
	}
	w.setLink(at, append(packets[:len(packets):len(packets)], w.intern(p)))
}

// clear drops what is on its way between two.
func (w *world) clear(a, b int8) {
	for _, at := range [...]int{between(a, b), between(b, a)} {
		if len(w.links[at].packets) > 0 {
			w.setLink(at, nil)
		}
	}
}

func (w *world) say(format string, args ...any) {
	if w.said != nil {
		fmt.Fprintf(w.said, "    "+format+"\n", args...)
	}
}

// fail notes that a rule is broken.
func (w *world) fail(format string, args ...any) {
	if w.broken == nil {
		w.broken = fmt.Errorf(format, args...)
	}
}

// vector interns what is new in a world, and returns its state.
func (w *world) vector() (v vector) {
	v[0] = keep(w, ownRecord, w.records, &w.record)
	for i := range w.scope.Replicas {
		v[1+i] = keep(w, ownReplica+i, w.universe.replicas, &w.replicas[i])
	}
	for j := range w.scope.Sources {
		v[1+maxReplicas+j] = keep(w, ownSource+j, w.universe.sources, &w.sources[j])
	}
	for at := range w.links {
		v[1+maxNodes+at] = keep(w, ownLink+at, w.universe.links, &w.links[at])
	}
	w.owned = 0
	return v
}

// keep interns a part if it is the world's own.
func keep[T interface {
	part
	number() *uint32
}](w *world, bit int, p *pool[T], v *T) uint32 {
	if w.owned&(1<<bit) != 0 {
		id, kept, err := p.intern(*v)
		if *v = kept; err != nil {
			w.fail("%w", err)
		}
		*kept.number() = id
	}
	return *(*v).number()
}

func (g *record) number() *uint32  { return &g.id }
func (r *replica) number() *uint32 { return &r.id }
func (s *source) number() *uint32  { return &s.id }
func (l *link) number() *uint32    { return &l.id }

// at returns the state of a vector.
func (u *universe) at(v vector) *world {
	w := &world{universe: u, record: u.records.all[v[0]]}
	for i := range u.scope.Replicas {
		w.replicas[i] = u.replicas.all[v[1+i]]
	}
	for j := range u.scope.Sources {
		w.sources[j] = u.sources.all[v[1+maxReplicas+j]]
	}
	for at := range w.links {
		w.links[at] = u.links.all[v[1+maxNodes+at]]
	}
	return w
}

// founded is a new group, whose sessions are open and known to all (R11).
func (u *universe) founded() *world {
	scope := u.scope
	members := make([]name, 0, maxReplicas)
	w := &world{universe: u, record: &record{epoch: 1, left: scope.Faults}}
	for i := range int8(scope.Replicas) {
		if int(i) < scope.Replicas-scope.Absent {
			w.record.inSync |= 1 << i
			members = append(members, replicaName(i))
		}
	}
	p, err := orderstate.NewPrimary(newHistory(), 1, 0, members[1:], scope.Max)
	must(err)
	for j := range int8(scope.Sources) {
		p.Open(orderstate.Nonce{byte(j + 1)}, uint64(j)+1, nil, 1)
	}
	for i := range int8(scope.Replicas) {
		w.replicas[i] = &replica{fate: absent}
		if w.inSync(i) {
			w.replicas[i] = &replica{primary: p, open: true}
		}
		if i > 0 && w.inSync(i) {
			b, err := orderstate.NewBackup(newHistory(), 1, 1)
			must(err)
			for j := range int8(scope.Sources) {
				m, _ := p.History().Has(orderstate.MessageID{Session: sessionOf(j)})
				b.Message(m)
			}
			_, err = b.Receive(p.Push(0))
			must(err)
			_, err = p.Acknowledge(replicaName(i), 1, p.Last())
			must(err)
			w.replicas[i] = &replica{backup: b, acked: acked{1, p.Last()}}
		}
	}
	for i := range int8(scope.Replicas) {
		if r := w.replicas[i]; r.fate == up {
			if r.backup != nil {
				r.backup.LearnStable(1, p.Stable())
				w.execute(r, r.backup)
				continue
			}
			for _, o := range p.History().Above(0) {
				r.executed = append(r.executed, turned(o))
			}
		}
	}
	for j := range int8(scope.Sources) {
		s := &source{state: orderstate.NewSource(), ready: true}
		s.state.NewEpoch(1)
		must(s.state.Start(1, 1, p.Stable(), nil))
		number, required := p.Required()
		s.state.Require(1, number, required)
		w.sources[j] = s
	}
	for at := range w.links {
		w.links[at] = &link{}
	}
	w.owned = 1<<maxParts - 1
	for i := range int8(scope.Replicas) {
		if w.replicas[i].backup != nil {
			w.attachAll(i)
		}
	}
	for j := range int8(scope.Sources) {
		w.answersAll(j, 0)
	}
	return w
}

func newHistory() *orderstate.History {
	h, err := orderstate.NewHistory(0, 0, nil, nil)
	must(err)
	return h
}

// must is for what this package can only have got wrong itself.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
