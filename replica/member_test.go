package replica

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/election/memory"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/replica/internal/machine"
)

// TestMember runs the scripts in testdata/member: what members do at each event, without
// goroutines, streams, etcd, or time that passes by itself. -rewrite writes what happens into them.
//
//	group a             a makes a group, and leads it
//	join b              b opens a stream to the primary; of a new primary it is a member already
//	restore b           b has its snapshot, and becomes a backup
//	open                the primary orders the opening of a session, whose number is its order's
//	order 1             … a message of session 1, which those that hear it have already
//	hear b 1, deaf b 1  the session's stream to b has acknowledged the epoch; has ended
//	tell b              the primary's stream carries to b what there is to say
//	null                the primary sends a null message to all: the order that none has carried
//	say b               b says what it holds, and whom it hears
//	add b [unknown]     b was written to in-sync, or may have been; "add b refused": it wasn't
//	evict b             b was taken out of in-sync
//	part b              b's stream to the primary has ended
//	leaves 1 5          whether the reply to session 1 that is 5th may leave
//	pass 600ms          time goes by, in which the members with streams but those named are heard
//	look                whom the primary finds gone
//	elect b             b is elected
//	answer c            c tells whoever takes over what it knows (R12.1)
//	know b 1            session 1 has told b what it knows
//	give-up             whoever takes over gives up those whose time is over
//	fix, gate           it fixes N; it opens its gate
func TestMember(t *testing.T) {
	scripts, err := filepath.Glob("testdata/member/*.txt")
	if err != nil || len(scripts) == 0 {
		t.Fatal(scripts, err)
	}
	for _, script := range scripts {
		t.Run(strings.TrimSuffix(filepath.Base(script), ".txt"), func(t *testing.T) {
			w := &members{
				t: t, now: time.Second, all: map[string]*scripted{},
				seqNums: map[orderstate.Session]orderstate.SeqNum{},
			}
			datadriven.RunTest(t, script, func(t *testing.T, d *datadriven.TestData) string {
				var out strings.Builder
				w.out = &out
				for command := range strings.Lines(d.Input) {
					if err := w.do(strings.Fields(command)); err != nil {
						d.Fatalf(t, "%s: %v", command, err)
					}
				}
				return out.String()
			})
		})
	}
}

// members is a group whose members are told by hand what happens.
type members struct {
	t       *testing.T
	out     *strings.Builder
	now     time.Duration
	all     map[string]*scripted
	primary *scripted // or who takes over
	seqNums map[orderstate.Session]orderstate.SeqNum
}

// scripted is one replica: as itself, and its stream to the primary at both ends.
type scripted struct {
	name string
	in   *incarnation
	up   *upstream
	at   *follower
	kept []*pb.FollowResponse // until it has its snapshot
}

func (w *members) say(format string, args ...any) { fmt.Fprintf(w.out, format+"\n", args...) }

func (w *members) replica(name string) *scripted {
	if s := w.all[name]; s != nil {
		return s
	}
	r, err := Join(w.t.Context(), "etcd:///test", Stateless(), Name(name), Store(memory.NewStore().Client("test")),
		Clock(func() time.Duration { return w.now }))
	if err != nil {
		w.t.Fatal(err)
	}
	s := &scripted{name: name, in: newIncarnation(w.t.Context(), &r.env)}
	s.in.self.Incarnation = 1
	w.all[name] = s
	return s
}

// cut says why a stream was cut.
func (w *members) cut(name string) context.CancelCauseFunc {
	return func(err error) {
		if err != nil {
			w.say("%s's stream is cut: %v", name, err)
		}
	}
}

func (w *members) do(command []string) error {
	number := func(i int) orderstate.OrderNum {
		n, err := strconv.ParseUint(command[i], 10, 64)
		if err != nil {
			w.t.Fatal(err)
		}
		return orderstate.OrderNum(n)
	}
	var b *scripted
	if len(command) > 1 && command[1] >= "a" {
		b = w.replica(command[1])
	}
	var l *leading
	if w.primary != nil {
		l = w.primary.in.m.leading()
	}
	switch command[0] {
	case "group":
		return w.group(b)
	case "join":
		w.joins(l, b)
	case "restore":
		return w.restores(b)
	case "open":
		return w.opens(l)
	case "order":
		return w.orders(l, orderstate.Session(number(1)))
	case "hear":
		s := orderstate.Session(number(2))
		m := b.in.m
		a := &attachment{m: m, session: s, bound: true, acknowledged: m.epoch(), out: newOutbox[pb.AttachResponse](nil)}
		m.sources.attached[a], m.sources.bySession[s] = struct{}{}, a
		if f := m.following(); f != nil {
			f.canHear(a)
		}
	case "deaf":
		b.in.m.sources.detach(b.in.m.sources.bySession[orderstate.Session(number(2))])
	case "tell":
		return w.told(b, l.tells(b.at))
	case "null":
		(&reign{w.primary.in, l}).null()
	case "say":
		return w.said(l, b)
	case "add":
		b.at.peer.stage = adding
		outcome := map[string]error{"unknown": &election.UnknownError{}, "refused": election.ErrDeposed}
		l.roster.added(b.at, outcome[strings.Join(command[2:], "")])
		w.roster(l)
	case "evict":
		l.roster.evicted(leaving{b.in.self, errSilent})
		w.roster(l)
	case "part":
		l.roster.left(b.at)
		w.roster(l)
	case "leaves":
		w.say("%v", l.mayLeave(orderstate.Session(number(1)), number(2), false, false))
	case "pass":
		d, err := time.ParseDuration(command[1])
		w.now += d
		for name, s := range w.all {
			if s.at != nil && !slices.Contains(command[2:], name) {
				s.at.heard = w.now
			}
		}
		return err
	case "look":
		for _, gone := range l.roster.gone(0) {
			w.say("%s is gone: %v", gone.member.Name, gone.because)
		}
		l.roster.dropSilent()
	case "elect":
		return w.elects(b)
	case "answer":
		return w.answers(b)
	case "know":
		w.primary.in.m.takingOver().answered(orderstate.Session(number(2)))
		w.waits()
	case "give-up":
		t := w.primary.in.m.takingOver()
		_, sessions := t.state.Waiting()
		(&takeover{elected{saw: w.now - 2*authority}, w.primary.in, t}).giveUp(sessions)
		w.waits()
	case "fix":
		l, err := w.primary.in.m.takingOver().fix(w.now + authority)
		if err != nil {
			return err
		}
		for o, _, ok := l.tail.Next(); ok; o, _, ok = l.tail.Next() {
			w.primary.in.m.own(o.OrderInfo)
		}
		w.say("the epoch begins at %d", l.primary.First())
		w.roster(l)
	case "gate":
		l.gate = l.primary.Held() && l.m.machine.Executed() >= l.primary.First()-1
		w.say("open: %v", l.gate)
	default:
		return errors.New("no such command")
	}
	return nil
}

func (w *members) group(a *scripted) error {
	h, err := orderstate.NewHistory(0, 0, nil, nil)
	if err != nil {
		return err
	}
	p, err := orderstate.NewPrimary(h, 1, 0, nil, 0)
	if err != nil {
		return err
	}
	a.in.group, a.in.secret, a.in.seal = 7, make([]byte, secretSize), wire.NewSeal(make([]byte, secretSize))
	l := a.in.m.leads(p, nil, others{})
	l.gate, l.authority = true, 1<<62
	w.primary = a
	return nil
}

func (w *members) joins(l *leading, b *scripted) {
	b.at = l.roster.admit(b.in.self, "", w.cut(b.name))
	b.up = newUpstream(w.now, w.cut(b.name))
	b.in.m.upstream = b.up
	if f := b.in.m.following(); f != nil {
		f.tellAll()
	}
	w.roster(l)
}

// restores gives a joiner what the primary has, as of its last turn.
func (w *members) restores(b *scripted) error {
	past := w.primary.in.m.past()
	h, err := orderstate.NewHistory(past.Executed, past.LastTime, past.Starts, past.Sessions)
	if err != nil {
		return err
	}
	first := b.kept[0]
	backup, err := orderstate.NewBackup(h, orderstate.Epoch(first.GetEpochStart().GetEpoch()),
		orderstate.OrderNum(first.GetEpochStart().GetFirstOrderNum()))
	if err != nil {
		return err
	}
	b.in.machine.Own(orderstate.OrderInfo{OrderNum: past.Executed})
	pursuit{b.in}.follows(newFollowing(b.in.m, backup, first.GetEpochStart()), first.GetWelcome())
	for _, resp := range b.kept {
		if err := w.told(b, resp); err != nil {
			return err
		}
	}
	return nil
}

func (w *members) opens(l *leading) error {
	nonce := orderstate.Nonce{byte(l.primary.Last() + 1)}
	o, err := l.ownTurn(w.t.Context(), func(at int64) (orderstate.OrderInfo, bool) {
		o, _, _ := l.primary.Open(nonce, l.m.seal.DigestOpening(nonce), nil, at)
		l.m.own(o)
		l.roster.sendOpening(o)
		return o, false
	})
	w.say("session %d is opened", o.Session)
	return err
}

func (w *members) orders(l *leading, s orderstate.Session) error {
	w.seqNums[s]++
	id := orderstate.MessageID{Session: s, SeqNum: w.seqNums[s]}
	m := orderstate.Message{MessageID: id, Digest: l.m.seal.Digest(id, 0, "/a/b", nil),
		Body: &machine.Body{Method: "/a/b"}, Size: 4}
	for _, r := range w.all { // its frame
		if a := r.in.m.sources.bySession[s]; a != nil {
			a.logFrame(m)
		}
	}
	o, v, err := l.order(&call{msg: m})
	if err == nil && v == orderstate.Fresh {
		l.m.own(o)
		w.say("%v is %d", id, o.OrderNum)
	}
	return err
}

// told lets a replica take what the primary's stream has carried.
func (w *members) told(b *scripted, resp *pb.FollowResponse) error {
	var what []string
	add := func(is bool, format string, args ...any) {
		if is {
			what = append(what, fmt.Sprintf(format, args...))
		}
	}
	f := b.in.m.following()
	if f == nil {
		b.kept = append(b.kept, resp)
		add(resp.GetWelcome() != nil, "a welcome, whose donor is %s, with what is kept above %d",
			resp.GetWelcome().GetDonor(), resp.GetWelcome().GetKeptAbove())
	}
	for _, r := range resp.GetSourceOrderInfo() {
		add(true, "order %d to %d", r.GetFirst(), r.GetFirst()+uint64(r.GetCount())-1)
	}
	for _, m := range resp.GetMessages() {
		add(true, "message %d/%d", m.GetSession(), m.GetSeqNum())
	}
	for _, d := range resp.GetDetached() {
		add(true, "session %d is detached, with replies up to %d", d.GetSession(), d.GetUpTo())
	}
	add(resp.GetInSync(), "it is in-sync")
	add(resp.GetAcknowledge() > 0, "the primary waits for %d", resp.GetAcknowledge())
	w.say("%s is told: %s", b.name, strings.Join(append(what, fmt.Sprintf("stable %d", resp.GetStable())), "; "))
	if f == nil {
		return nil
	}
	if err := f.followed(b.up, resp); err != nil {
		return err
	}
	turns := b.in.m.next(nil)
	for _, turn := range turns {
		b.in.machine.Own(turn.OrderInfo)
	}
	if len(turns) > 0 {
		b.in.m.replayed(turns)
	}
	w.say("%s holds %d, and lacks %v", b.name, f.backup.Last(), f.backup.Lacks(9))
	return nil
}

// said lets the primary take what a replica has to say.
func (w *members) said(l *leading, b *scripted) error {
	req := pursuit{b.in}.says(b.up)
	slices.Sort(req.Attach)
	for _, s := range req.GetAttach() {
		w.say("%s hears session %d", b.name, s)
	}
	for _, d := range req.GetDetach() {
		w.say("%s doesn't hear session %d", b.name, d.GetSession())
	}
	if k := req.GetAcknowledgement(); k != nil {
		w.say("%s acknowledges %d", b.name, k.GetOrderNum())
	}
	grows, err := l.roster.acknowledged(b.at, req)
	if grows {
		w.say("%s is to grow", b.name)
	}
	w.roster(l)
	return err
}

// roster says what the primary knows of the others.
func (w *members) roster(l *leading) {
	var all []string
	for _, p := range l.roster.peers {
		stage := [...]string{"empty", "restored", "counted", "adding", "in-sync"}[p.stage]
		if p.stream == nil {
			stage += " without a stream"
		}
		all = append(all, p.member.Name+" is "+stage)
	}
	slices.Sort(all)
	_, required := l.primary.Required()
	w.say("%s: stable %d of %d, required %v, others [%s]", l.m.self.Name, l.primary.Stable(), l.primary.Last(),
		required, strings.Join(all, ", "))
}

func (w *members) elects(b *scripted) error {
	former := w.primary.in.m.leading()
	view := election.State{InSync: []election.Member{b.in.self}}
	for _, p := range former.roster.peers {
		if p.stage.isMember() && p.member != b.in.self {
			view.InSync = append(view.InSync, p.member)
		}
	}
	slices.SortFunc(view.InSync, func(x, y election.Member) int { return strings.Compare(x.Name, y.Name) })
	b.in.m.upstream = nil
	_, _, err := b.in.m.elected(elected{epoch: former.epoch() + 1, view: view, former: former.m.self})
	w.primary = b
	w.waits()
	return err
}

// waits says for whom a takeover waits.
func (w *members) waits() {
	t := w.primary.in.m.takingOver()
	peers, sessions := t.state.Waiting()
	w.say("%s waits for peers %v, sessions %v; it holds %d, and lacks %v", w.primary.name, peers, sessions,
		t.state.Last(), t.state.Lacks(9))
}

func (w *members) answers(c *scripted) error {
	t, f := w.primary.in.m.takingOver(), c.in.m.following()
	known, err := f.backup.Answer(t.epoch())
	if err != nil {
		return err
	}
	f.start = nil
	runs, err := f.runsOf(known)
	if err != nil {
		return err
	}
	announced, err := wire.RunsFromProto(runs)
	if err != nil {
		return err
	}
	if err := t.state.PeerKnows(f.backup.History().Starts(), t.m.open(announced)); err != nil {
		return err
	}
	t.state.PeerAnswered(replicaID(c.in.self))
	w.waits()
	return nil
}
