package orderstate

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// world is a group with its sources, and a network whose every packet waits to be delivered,
// repeated or lost. It is the runtime that the rules ask for, with all choices left to who drives
// it: a script reads it beside the patent, a fuzz target drives it from bytes. Every event is a
// command in words, so that a failing run is a script too.
type world struct {
	level string // reflected, direct, stable
	max   int    // pendingSourceOrderMax
	// sessions are attached by command only; else each backup hears them all from the beginning of
	// each epoch on (R11)
	detached bool
	replicas map[Replica]*replica
	sources  map[string]*source
	links    map[string][]packet // "C1>S1"
	names    map[MessageID]string
	runs     []Run // what is sealed
	now      int64

	// etcd
	epoch   Epoch
	primary Replica
	inSync  map[Replica]bool

	// excused: two faults at once, after which what was accepted may be lost, if it is told.
	excused bool
	// oldStored: the store has gone back, and what was stable may be lost, if it is told.
	oldStored bool
	said      strings.Builder
}

type replica struct {
	name     Replica
	dead     bool
	backup   *Backup // till it is primary
	takeover *Takeover
	primary  *Primary
	executed []execution // from orderNum 1
	owed     []owed
	joining  OrderNum // the turn of the snapshot that a joiner came with
	told     int      // what it has told its primaries of whom it hears is numbered, as it is on a stream
	heard    map[Replica]int
	state    []byte  // as of the last check
	clone    encoded // the same
}

// execution is what agreement is about (I1).
type execution struct {
	what  string
	time  int64
	first Epoch
}

// owed is a reply that the primary hasn't sent yet.
type owed struct {
	to       *source
	id       MessageID
	orderNum OrderNum
	held     OrderNum
}

type source struct {
	name      string
	session   Session
	state     *Source
	dead      bool
	told      error // what ended the session
	at        Epoch // it accepts nothing of an older one (R10: its primary's authority has run out)
	calls     []*call
	reflected map[Replica]uint64
	accepted  []accepted
}

type call struct {
	message Message
	done    bool
	replies []Reply
}

type accepted struct {
	epoch    Epoch
	orderNum OrderNum
	id       MessageID
}

type packet struct {
	label   string
	deliver func() (taken bool)
}

var errWorld = errors.New("the script is wrong")

func newWorld(level string, most int, replicas []Replica, sources []string, detached bool) *world {
	w := &world{
		detached: detached,
		level:    level, max: most, replicas: map[Replica]*replica{}, sources: map[string]*source{},
		links: map[string][]packet{}, names: map[MessageID]string{},
		epoch: 1, primary: replicas[0], inSync: map[Replica]bool{},
	}
	p, _ := NewPrimary(must1(NewHistory(0, 0, nil, nil)), 1, 0, replicas[1:], most)
	for i, name := range replicas {
		r := &replica{name: name}
		if w.replicas[name], w.inSync[name] = r, true; i == 0 {
			r.primary = p
		} else {
			r.backup = must1(NewBackup(must1(NewHistory(0, 0, nil, nil)), 1, 1))
		}
	}
	// Sessions are opened at Stable (R11): everyone holds them before anything else is ordered.
	for i, name := range sources {
		p.Open(Nonce{byte(i + 1)}, uint64(i), nil, w.tick())
		s := &source{name: name, session: Session(i + 1), state: NewSource(), reflected: map[Replica]uint64{}}
		s.state.NewEpoch(1)
		w.sources[name] = s
	}
	for _, name := range replicas[1:] {
		b := w.replicas[name].backup
		for _, m := range p.h.messages.held {
			b.Message(m)
		}
		_, _ = b.Receive(p.Push(0))
	}
	for _, name := range replicas[1:] {
		_, _ = p.Acknowledge(name, 1, p.Last())
	}
	for _, name := range replicas {
		w.execute(w.replicas[name])
		w.stable(w.replicas[name], 1, p.Stable())
	}
	for _, s := range w.sources {
		if err := s.state.Start(1, 1, p.Stable(), nil); err != nil {
			panic(err)
		}
	}
	for _, name := range replicas[1:] {
		w.attachAll(w.replicas[name])
	}
	p.Null()
	w.said.Reset()
	return w
}

func must1[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func (w *world) tick() int64 { w.now++; return w.now }

func (w *world) say(format string, args ...any) { fmt.Fprintf(&w.said, format+"\n", args...) }

// do runs one command, and returns what happened. An error is either errWorld, or a rule that was
// broken.
func (w *world) do(command string) (said string, err error) {
	w.said.Reset()
	defer func() {
		if broken := recover(); broken != nil {
			said, err = w.said.String(), fmt.Errorf("%v", broken)
		}
	}()
	words := append(strings.Fields(command), "", "", "")
	on, ok := map[string]func(a, b, c string) error{
		"call": w.call, "deliver": w.deliver, "repeat": w.repeat, "lose": w.lose, "reply": w.reply, "null": w.null,
		"push": w.push, "nested": w.nested, "reflect": w.reflect,
		"ack": w.ack, "fetch": w.fetch, "cut": w.cut, "crash": w.crash, "elect": w.elect, "tell": w.tell, "fix": w.fix,
		"gate": w.gate, "evict": w.evict, "oldstore": w.oldStore, "giveup": w.giveUp, "reconnect": w.reconnect,
		"detach": w.detach, "attach": w.attach, "stream": w.stream, "join": w.join, "admit": w.admit,
		"expire": w.expire, "show": w.show,
	}[words[0]]
	if !ok {
		return "", fmt.Errorf("%w: %s?", errWorld, command)
	}
	if err = on(words[1], words[2], words[3]); err == nil {
		err = w.check()
	}
	return w.said.String(), err
}

func (w *world) send(from, to, label string, deliver func() bool) {
	link := from + ">" + to
	w.links[link] = append(w.links[link], packet{label, deliver})
}

func (w *world) announcements(list []Announcement) string {
	words := make([]string, len(list))
	for i, a := range list {
		words[i] = w.run(w.unseal(a))
	}
	return strings.Join(words, " ")
}

// run prints a run as a reader of the patent would: m1=2 m2=3.
func (w *world) run(r Run) string {
	words := make([]string, len(r.Entries))
	for i, o := range r.Entries {
		words[i] = fmt.Sprintf("%s=%d", w.name(o), o.OrderNum)
	}
	return "[" + strings.Join(words, " ") + "]"
}

func (w *world) name(o OrderInfo) string {
	switch o.Kind {
	case Open:
		return "open"
	case Expire:
		return "expire"
	}
	return w.names[o.Message()]
}

func (w *world) seal(r Run) Announcement {
	w.runs = append(w.runs, r)
	return Announcement{r.Envelope, []byte(strconv.Itoa(len(w.runs) - 1))}
}

func (w *world) unseal(a Announcement) Run {
	return w.runs[must1(strconv.Atoi(string(a.Sealed)))]
}

func (w *world) list(rs []Run) string {
	words := make([]string, len(rs))
	for i, run := range rs {
		words[i] = w.run(run)
	}
	if len(words) == 0 {
		return "no order"
	}
	return strings.Join(words, " ")
}

func (w *world) deliver(link, which, _ string) error { return w.handle(link, which, true) }
func (w *world) repeat(link, which, _ string) error  { return w.handle(link, which, false) }

// handle delivers the first packet of a link, or the one that is labelled so, or the last.
func (w *world) handle(link, which string, remove bool) error {
	i, err := w.find(link, which)
	if err != nil {
		return err
	}
	p := w.links[link][i]
	_, to, _ := strings.Cut(link, ">")
	taken := true
	if r, s := w.replicas[Replica(to)], w.sources[to]; r != nil && r.dead || s != nil && (s.dead || s.told != nil) {
		w.say("%s is gone", to)
	} else {
		taken = p.deliver()
	}
	if remove && taken {
		w.links[link] = slices.Delete(slices.Clone(w.links[link]), i, i+1)
	}
	return nil
}

func (w *world) find(link, which string) (int, error) {
	packets := w.links[link]
	switch {
	case len(packets) == 0:
		return 0, fmt.Errorf("%w: nothing is on %s", errWorld, link)
	case which == "":
		return 0, nil
	case which == "last":
		return len(packets) - 1, nil
	}
	i := slices.IndexFunc(packets, func(p packet) bool { return strings.Contains(" "+p.label+" ", " "+which+" ") })
	if i < 0 {
		return 0, fmt.Errorf("%w: no %s on %s", errWorld, which, link)
	}
	return i, nil
}

func (w *world) lose(link, which, _ string) error {
	i, err := w.find(link, which)
	if err == nil {
		w.links[link] = slices.Delete(slices.Clone(w.links[link]), i, i+1)
	}
	return err
}

// show prints the patent's lists.
func (w *world) show(name, _, _ string) error {
	if name == "network" {
		for _, link := range sorted(maps.Keys(w.links)) {
			for _, p := range w.links[link] {
				w.say("%s: %s", link, p.label)
			}
		}
		return nil
	}
	if s := w.sources[name]; s != nil {
		w.say("%s: pendingRemoteOrder %s; held up to %d; stable %d", name,
			orNone(w.announcements(s.state.PendingRemoteOrder())), s.state.HeldUpTo(), s.state.Stable())
		return nil
	}
	r := w.replicas[Replica(name)]
	switch {
	case r == nil:
		return fmt.Errorf("%w: %s?", errWorld, name)
	case r.primary != nil:
		w.say("%s: pendingSourceOrder %s; stable %d", name, orNone(w.ordered(r.primary.PendingSourceOrder())),
			r.primary.Stable())
		for _, s := range sorted(maps.Keys(w.sources)) {
			if k := r.primary.reflected[w.sources[s].session]; k > 0 {
				w.say("    %s has reflected the order up to %d", s, k)
			}
		}
	default:
		pending := r.backup.pendingDestOrder
		var list []Ordered
		for _, k := range sorted(maps.Keys(pending)) {
			list = append(list, pending[k])
		}
		w.say("%s: pendingDestOrder %s; held up to %d; lacks %s", name, orNone(w.ordered(list)), r.backup.Last(),
			orNone(w.ids(r.backup.Lacks(100))))
	}
	return nil
}

func orNone(s string) string {
	if s == "" || s == "[]" {
		return "empty"
	}
	return s
}

func (w *world) ordered(list []Ordered) string {
	words := make([]string, len(list))
	for i, o := range list {
		words[i] = fmt.Sprintf("%s=%d", w.name(o.OrderInfo), o.OrderNum)
	}
	return strings.Join(words, " ")
}

func (w *world) ids(ids []MessageID) string {
	words := make([]string, len(ids))
	for i, id := range ids {
		words[i] = w.names[id]
	}
	return strings.Join(words, " ")
}
