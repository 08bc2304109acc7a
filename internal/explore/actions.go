package explore

import "fmt"

// action is one step. x, y are nodes, or a source and the number of one of its calls.
type action struct {
	do   verb
	x, y int8
	// disturbs: it is a fault, or what need not happen; whatever waits must come without it.
	disturbs bool
}

type verb uint8

const (
	deliver verb = iota
	arrive
	issue
	lose
	idle
	ask
	fetch
	seeEnd
	crash
	vanish
	cut
	elect
	giveUp
	evict
	restore
	join
	admit
	sever
	mend
	look
	shown
	pass
)

func (a action) String() string {
	c := fmt.Sprintf("c%d.%d", a.x+1, a.y+1)
	switch a.do {
	case deliver:
		return fmt.Sprintf("%s→%s", nodeName(a.x), nodeName(a.y))
	case arrive:
		return "RPC " + c
	case issue:
		return fmt.Sprintf("C%d calls", a.x+1)
	case lose:
		return "lost: RPC " + c
	case idle:
		return fmt.Sprintf("S%d is idle", a.x+1)
	case ask:
		return fmt.Sprintf("C%d asks for announcements", a.x+1)
	case fetch:
		return fmt.Sprintf("S%d fetches", a.x+1)
	case seeEnd:
		return fmt.Sprintf("S%d sees that C%d is gone", a.x+1, a.y+1)
	case crash:
		return nodeName(a.x) + " dies"
	case vanish:
		return fmt.Sprintf("lost: what %s had sent to %s", nodeName(a.x), nodeName(a.y))
	case cut:
		return fmt.Sprintf("cut: %s–%s, and connected again", nodeName(a.x), nodeName(a.y))
	case elect:
		return fmt.Sprintf("S%d is elected", a.x+1)
	case giveUp:
		return fmt.Sprintf("S%d gives C%d up", a.x+1, a.y+1)
	case evict:
		return fmt.Sprintf("S%d evicts S%d", a.x+1, a.y+1)
	case restore:
		return fmt.Sprintf("the store has S%d in-sync again", a.x+1)
	case join:
		return fmt.Sprintf("S%d joins with S%d's snapshot", a.x+1, a.y+1)
	case admit:
		return fmt.Sprintf("S%d is written to in-sync", a.x+1)
	case sever:
		return fmt.Sprintf("S%d can't hear C%d", a.x+1, a.y+1)
	case look:
		return fmt.Sprintf("C%d reads", a.x+1)
	case shown:
		return fmt.Sprintf("RPC of C%d's read", a.x+1)
	case pass:
		return "A passes"
	default:
		return fmt.Sprintf("S%d hears C%d again", a.x+1, a.y+1)
	}
}

// enabled appends what can happen, always in one order.
func (w *world) enabled(as []action) []action {
	as = w.enabledNetwork(as)
	as = w.enabledSources(as)
	return w.enabledReplicas(as)
}

func (w *world) enabledNetwork(as []action) []action {
	left := &w.record.left
	for from := range int8(maxNodes) {
		for to := range int8(maxNodes) {
			if len(w.links[between(from, to)].packets) == 0 {
				continue
			}
			as = append(as, action{do: deliver, x: from, y: to})
			if !w.alive(from) {
				as = append(as, action{do: vanish, x: from, y: to, disturbs: true})
			}
			if left.Cuts > 0 && w.alive(from) && (from < to || len(w.links[between(to, from)].packets) == 0) {
				as = append(as, action{do: cut, x: min(from, to), y: max(from, to), disturbs: true})
			}
		}
	}
	return as
}

func (w *world) enabledSources(as []action) []action {
	left := &w.record.left
	for j := range int8(w.scope.Sources) {
		s := w.sources[j]
		if s.fate != up {
			continue
		}
		waiting := 0
		for i, c := range s.calls {
			if !c.done {
				waiting++
			}
			if c.flight == nil {
				continue
			}
			if c.flight.kind == reply || w.serves(c.to) {
				as = append(as, action{do: arrive, x: j, y: int8(i)})
			}
			if left.Losses > 0 {
				as = append(as, action{do: lose, x: j, y: int8(i), disturbs: true})
			}
		}
		if len(s.calls) < w.scope.Calls[j] && waiting < w.scope.Outstanding && s.ready {
			as = append(as, action{do: issue, x: j, disturbs: true})
		}
		if s.reads < w.scope.Reads && !s.read.asked && s.ready {
			as = append(as, action{do: look, x: j, disturbs: true})
		}
		if f := s.read.flight; f != nil && (f.kind == reply || w.shows(s.read.to, j)) {
			as = append(as, action{do: shown, x: j})
		}
		if w.lacks(j) {
			as = append(as, action{do: ask, x: j})
		}
		if left.Deaths > 0 {
			as = append(as, action{do: crash, x: node(j), disturbs: true})
		}
		for i := range int8(w.scope.Replicas) {
			if w.cutOff(i, node(j)) {
				as = append(as, action{do: mend, x: i, y: j, disturbs: w.record.primary != i}) // calls go on without it
			} else if left.Breaks > 0 && w.alive(i) && w.inSync(i) && w.replicas[i].backup != nil {
				as = append(as, action{do: sever, x: i, y: j, disturbs: true})
			}
		}
	}
	return as
}

func (w *world) enabledReplicas(as []action) []action {
	left := &w.record.left
	others := 0
	for i := range int8(w.scope.Replicas) {
		if w.alive(i) && w.inSync(i) {
			others++
		}
	}
	primaryLives := w.alive(w.record.primary)
	if w.scope.Reads > 0 && w.record.passed < w.record.epoch && w.record.epoch > 1 {
		as = append(as, action{do: pass})
	}
	for i := range int8(w.scope.Replicas) {
		r := w.replicas[i]
		if r.fate == absent {
			for donor := range int8(w.scope.Replicas) {
				if donor != i && w.mayJoin(i, donor) {
					as = append(as, action{do: join, x: i, y: donor, disturbs: true})
				}
			}
			continue
		}
		if r.fate == asleep && left.Restores > 0 {
			as = append(as, action{do: restore, x: i, disturbs: true})
		}
		if r.fate != up {
			continue
		}
		if left.Crashes > 0 && (others > 1 || !w.inSync(i)) {
			as = append(as, action{do: crash, x: i, disturbs: true})
		}
		if w.mayStand(i) && (!primaryLives || left.Depositions > 0) {
			as = append(as, action{do: elect, x: i, disturbs: primaryLives})
		}
		if w.mayAdmit(i) {
			as = append(as, action{do: admit, x: i})
		}
		if r.primary != nil {
			if _, ok := r.primary.Unpushed(); ok && !without(r4) {
				as = append(as, action{do: idle, x: i})
			}
		} else if r.backup != nil && len(r.backup.Lacks(1)) > 0 {
			as = append(as, action{do: fetch, x: i})
		}
		for j := range int8(w.scope.Sources) {
			if r.primary != nil && !w.alive(node(j)) && r.ended&(1<<j) == 0 {
				as = append(as, action{do: seeEnd, x: i, y: j})
			}
			if w.waitsFor(i, j) && (!w.alive(node(j)) || left.Skips > 0) {
				as = append(as, action{do: giveUp, x: i, y: j, disturbs: w.alive(node(j))})
			}
		}
		if w.record.primary == i && r.backup == nil {
			for out := range int8(w.scope.Replicas) {
				if out != i && w.counted(i, out) && (!w.alive(out) || left.Evictions > 0) {
					as = append(as, action{do: evict, x: i, y: out, disturbs: w.alive(out)})
				}
			}
		}
	}
	return as
}

// apply does one action, and checks what holds after it. The receiver isn't changed.
func (w *world) apply(a action) (to *world) {
	c := *w
	to = &c
	c.owned, c.broken = 0, nil
	defer func() {
		if p := recover(); p != nil {
			c.fail("panic: %v", p)
		}
	}()
	c.step(a)
	for i := range int8(c.scope.Replicas) {
		if c.owned&(1<<(ownReplica+int(i))) != 0 {
			c.acknowledge(i)
		}
	}
	if c.scope.Truncate {
		c.truncate()
	}
	return to
}

func (w *world) step(a action) {
	switch a.do {
	case deliver:
		w.deliver(a.x, a.y)
	case arrive:
		if w.sources[a.x].calls[a.y].flight.kind == reply {
			w.replied(a.x, int(a.y))
		} else {
			w.serve(a.x, int(a.y))
		}
	case issue:
		w.issue(a.x)
	case lose:
		w.g().left.Losses--
		w.request(a.x, int(a.y))
	case idle:
		w.null(a.x)
	case ask:
		w.ask(a.x)
	case fetch:
		w.fetch(a.x)
	case seeEnd:
		w.gonePush(a.x, a.y)
	case crash:
		w.crash(a.x)
	case vanish:
		w.setLink(between(a.x, a.y), nil)
	case cut:
		w.cut(a.x, a.y)
	case elect:
		w.elect(a.x)
	case giveUp:
		w.giveUp(a.x, a.y)
	case evict:
		w.evict(a.x, a.y)
	case restore:
		w.restore(a.x)
	case join:
		w.join(a.x, a.y)
	case admit:
		w.admit(a.x)
	case sever:
		w.sever(a.x, a.y)
	case mend:
		w.mend(a.x, a.y)
	case look:
		w.issueRead(a.x)
	case shown:
		if w.sources[a.x].read.flight.kind == reply {
			w.readReplied(a.x)
		} else {
			w.serveRead(a.x)
		}
	case pass:
		w.authorityEnds()
	}
}

// deliver takes the first packet of a link.
func (w *world) deliver(from, to int8) {
	packets := w.links[between(from, to)].packets
	p := packets[0]
	w.setLink(between(from, to), packets[1:])
	w.say("%v", p)
	if to >= maxReplicas {
		w.toSource(to-maxReplicas, from, p)
		return
	}
	switch p.kind {
	case frame:
		w.taken(to, unsealAll(p.sealed), p.list)
	case hello:
		w.taken(to, unsealAll(p.sealed), p.list)
		w.answers(to, from-maxReplicas, p.epoch)
	case ack:
		w.acknowledged(to, from, p)
	case push:
		w.taken(to, p.runs, p.list)
		if f := w.r(to).follows(); f != nil {
			f.LearnStable(p.epoch, p.stable)
		}
	case newEpoch:
		w.peerAnswers(to, from, p.epoch)
	case peerKnows:
		w.peerAnswered(to, from, p)
	case sessionHas:
		w.sessionAnswered(to, from-maxReplicas, p)
	case starts:
		w.started(to, from, p)
	case deaf:
		w.confirm(to, from, p)
	case confirmed:
		if f := w.r(to).follows(); f != nil {
			f.Confirmed(p.session, p.number, p.k)
		}
	case hears:
		if r := w.r(to); r.primary != nil {
			r.primary.Attach(replicaName(from), p.session)
			w.pay(to)
		}
	}
}

func (w *world) toSource(j, from int8, p *packet) {
	switch p.kind {
	case ack:
		w.s(j).state.Acknowledge(replicaName(from), p.epoch, p.k)
		w.handOver(j)
	case newEpoch:
		w.sessionAnswers(j, from, p.epoch)
	case push:
		w.learn(j, p)
		w.handOver(j)
	case starts:
		w.resumes(j, from, p)
	case requires:
		w.s(j).state.Require(p.epoch, p.number, p.members)
		w.handOver(j)
	}
}

// fetch: a backup gets what it lacks from whoever lives and has it (¶47); who takes over from its
// peers, since sources answer.
func (w *world) fetch(i int8) {
	r := w.r(i)
	var list []message
	for _, id := range r.follows().Lacks(len(w.ids())) {
		for n := range int8(w.scope.Replicas) {
			if n == i || !w.alive(n) || r.takeover != nil && !w.inSync(n) {
				continue
			}
			if m, ok := w.replicas[n].history().Has(id); ok {
				list = append(list, m)
			}
		}
		if j := sourceOf(id.Session); r.takeover == nil && w.alive(node(j)) && !w.cutOff(node(j), i) && id.SeqNum > 0 {
			list = append(list, w.sources[j].calls[id.SeqNum-1].message)
		}
	}
	w.taken(i, nil, list)
}
