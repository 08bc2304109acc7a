package simulation

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/transport"
)

// Plan is all that one seed decides; nothing is drawn while it runs but what each worker calls
// next, from a generator of its own.
type Plan struct {
	Seed      uint64
	Live      bool // liveness: faults end early, calls have no short deadlines, and every one must end well
	Level     understudy.Level
	Replicas  int
	Clients   int
	Workers   int // per client
	Workload  string
	Style     Style
	Load      time.Duration // how long the workers call
	Heal      time.Duration // when the last fault has ended
	Pause     time.Duration // of a worker between two calls, about; while a fault begins or ends, none
	Quiet     int           // this client calls rarely; -1 for none
	MinInSync int
	// percent of calls that are read-only, on top of the others; 0: the service has no such method
	Reads   int
	Reader  bool          // there is one more client, which does nothing but read
	Raise   int           // percent of calls that ask for Stable
	Hurry   int           // percent of calls with a short deadline
	Large   int           // percent of calls of some 100 KiB
	Linger  time.Duration // quiet before the last calls: sessions without a stream expire
	Drift   map[string]float64
	Faults  []Fault
	Hostile bool `json:",omitempty"` // a client beside the others speaks the protocol itself, and not as it should
}

// Style bounds what the faults touch, so that stricter promises can be checked.
type Style string

// The styles.
const (
	Anything Style = "anything"
	Replicas Style = "replicas" // no client, and no client's link: below Stable nobody may be told DataLoss
	Backup   Style = "backup"   // one backup, and its link to the primary: below Stable no call may be slow (R6)
)

// Fault is one fault. Hosts are roles: "primary", "backup0" (of the replicas that aren't primary,
// by name), "client0". Who has the role when the fault begins has it until it ends.
type Fault struct {
	At, For time.Duration
	Kind    string
	Hosts   []string // what it hits; of a link both ends, in its direction
	K       int      // "crash at": the message
	Before  bool     // it is lost
	Extra   time.Duration
	Way     string // "partition", "cut": "both", "out", "in"
	Store   bool   // "partition": these hosts lose the store, too
}

func (f Fault) String() string {
	s := fmt.Sprintf("%v +%v %s %s", f.At, f.For, f.Kind, strings.Join(f.Hosts, " "))
	switch f.Kind {
	case "crash at":
		s += fmt.Sprintf(" k=%d before=%v", f.K, f.Before)
	case "slow", "clock", "store slow", "store restored":
		s += fmt.Sprintf(" by %v", f.Extra)
	case "store keys":
		s += " " + f.Way
	case "partition", "cut":
		s += fmt.Sprintf(" %s store=%v", f.Way, f.Store)
	}
	return s
}

// clients says whether the fault can part a client from what it has sent, or dies with.
func (f Fault) clients() bool {
	return slices.ContainsFunc(f.Hosts, func(h string) bool { return strings.HasPrefix(h, "client") })
}

func (p Plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: live=%v %v replicas=%d clients=%d workers=%d %s style=%s load=%v heal=%v pause=%v "+
		"quiet=%d min=%d reads=%d%% reader=%v raise=%d%% hurry=%d%% large=%d%% linger=%v hostile=%v\n",
		p.Seed, p.Live, p.Level, p.Replicas, p.Clients, p.Workers, p.Workload, p.Style, p.Load,
		p.Heal, p.Pause, p.Quiet, p.MinInSync, p.Reads, p.Reader, p.Raise, p.Hurry, p.Large, p.Linger, p.Hostile)
	for _, h := range p.hosts() {
		if d := p.Drift[h]; d != 0 {
			fmt.Fprintf(&b, "  %s's clock is off by %+.1f %%\n", h, 100*d)
		}
	}
	for _, f := range p.Faults {
		fmt.Fprintf(&b, "  %v\n", f)
	}
	return b.String()
}

func (p Plan) hosts() []string {
	var hosts []string
	for i := range p.Replicas {
		hosts = append(hosts, fmt.Sprintf("replica%d", i))
	}
	for i := range p.Clients {
		hosts = append(hosts, fmt.Sprintf("client%d", i))
	}
	return hosts
}

func (p Plan) opening() Cells {
	if p.Workload == "bank" {
		return Cells{opening, opening, opening, opening}
	}
	return Cells{}
}

// maxDrift is within what A + margin tolerates of the slowest against the fastest: 1.04/0.96 < 1.1
// (R10, R12.2).
const maxDrift = 0.04

// dice draws from a seed.
type dice struct{ *rand.Rand }

func newDice(seed, stream uint64) dice { return dice{rand.New(rand.NewPCG(seed, stream))} }

func (d dice) between(from, to time.Duration) time.Duration {
	return from + time.Duration(d.Int64N(int64(to-from)))
}

func (d dice) percent(p int) bool { return d.IntN(100) < p }

func oneOf[T any](d dice, from ...T) T { return from[d.IntN(len(from))] }

// Draw makes the seed's plan.
func Draw(seed uint64, live bool) Plan {
	d := newDice(seed, 1)
	p := Plan{
		Seed: seed, Live: live,
		Level:    oneOf(d, understudy.Reflected, understudy.Direct, understudy.Stable),
		Replicas: oneOf(d, 3, 3, 3, 3, 3, 3, 2, 4, 4, 5),
		Clients:  2 + d.IntN(3),
		Workers:  oneOf(d, 1, 1, 2, 3),
		Workload: oneOf(d, "counter", "register", "bank"),
		Style:    oneOf(d, Anything, Anything, Anything, Anything, Replicas, Replicas, Backup),
		Load: oneOf(d, d.between(500*time.Millisecond, 2*time.Second), d.between(2*time.Second, 4*time.Second),
			d.between(4*time.Second, 7*time.Second)),
		Quiet: -1, MinInSync: 1,
		Drift: map[string]float64{},
	}
	p.Pause = p.Load * time.Duration(p.Clients*p.Workers) / time.Duration(50+d.IntN(150))
	if d.percent(30) {
		p.Quiet = d.IntN(p.Clients)
	}
	if p.Replicas > 2 && d.percent(10) {
		p.MinInSync = 2
	}
	p.Heal = p.Load
	if live {
		p.Heal = p.Load * 2 / 3
	}
	if p.Level != understudy.Stable {
		p.Raise = oneOf(d, 0, 0, 30)
	}
	if !live && p.Style != Backup {
		p.Hurry = oneOf(d, 0, 10, 30)
	}
	p.Large = oneOf(d, 0, 0, 0, 0, 2)
	if d.percent(3) {
		p.Linger = 35 * time.Second
	}
	if d.percent(50) {
		for _, h := range p.hosts() {
			p.Drift[h] = (2*d.Float64() - 1) * maxDrift
		}
	}
	n := 1 + d.IntN(5)
	if !live {
		n += d.IntN(6)
	}
	for range n {
		f := p.fault(d)
		if k := len(p.Faults); k > 0 && d.percent(40) { // at about the time of another one
			other := p.Faults[d.IntN(k)]
			f.At = max(0, min(p.Heal-1,
				oneOf(d, other.At, other.At, other.At+other.For)+d.between(-2*time.Millisecond, 20*time.Millisecond)))
		}
		p.Faults = append(p.Faults, f)
		// who is parted from the rest stands still, with replies on their way, and goes on when
		// there is another primary (R10)
		if f.Kind == "partition" && f.Way == "both" && d.percent(40) {
			p.Faults = append(p.Faults,
				Fault{At: f.At + d.between(time.Millisecond, 450*time.Millisecond),
					For: d.between(time.Second, 5*time.Second), Kind: "pause", Hosts: []string{"primary"}})
		}
		if f.Kind == "crash" && p.Style == Anything && d.percent(15) { // a client dies with the replica
			p.Faults = append(p.Faults,
				Fault{At: f.At + d.between(0, time.Millisecond), For: f.For, Kind: "client crash",
					Hosts: []string{p.client(d)}})
		}
	}
	d = newDice(seed, 2)
	p.Reads = oneOf(d, 0, 20, 40, 40, 70)
	p.Reader = p.Reads > 0 && d.percent(70)
	if p.Style == Anything && d.percent(30) {
		p.deaf(d)
	}
	if p.Style == Anything && p.Heal > 2400*time.Millisecond && d.percent(15) {
		p.oldSide(d)
	}
	if seed%5 == 0 && p.Style != Backup {
		p.world(newDice(seed, 4))
		if d := newDice(seed, 5); d.percent(50) {
			if p.Hostile = true; d.percent(40) { // nothing else happens
				p.Faults = nil
			}
		}
	}
	slices.SortFunc(p.Faults, func(a, b Fault) int { return cmp.Compare(a.At, b.At) })
	return p
}

// deaf draws that a client can't reach one backup, or any, for so long that its session is detached
// there (R11): at once when the connections end, after some seconds when nothing but silence shows
// it. Then the primary dies, or is left alone with that client, and a backup takes over that can't
// hear it.
func (p *Plan) deaf(d dice) {
	var faults []Fault
	client := p.someone(d)
	backups := []string{fmt.Sprintf("backup%d", d.IntN(p.Replicas-1))}
	if d.percent(50) {
		backups = nil
		for i := range p.Replicas - 1 {
			backups = append(backups, fmt.Sprintf("backup%d", i))
		}
	}
	at, long := d.between(50*time.Millisecond, max(p.Heal/2, 60*time.Millisecond)),
		d.between(time.Second, 5*time.Second)
	way := oneOf(d, "both", "both", "out", "in")
	then := at + d.between(5*time.Millisecond, long)
	for _, b := range backups {
		faults = append(faults, Fault{At: at, For: long, Kind: "cut", Hosts: []string{client, b}, Way: way})
	}
	if p.Heal-at < 3*time.Second || d.percent(50) {
		for _, b := range backups {
			faults = append(faults, Fault{At: at + time.Millisecond, Kind: "reset", Hosts: []string{client, b}})
		}
		if d := newDice(p.Seed, 3); d.percent(50) { // while what it was told is still on its way to the backups
			then = at + time.Millisecond + d.between(300*time.Microsecond, 10*time.Millisecond)
		}
	}
	f := Fault{At: then, For: d.between(20*time.Millisecond, 2*time.Second), Hosts: []string{"primary", client}}
	switch f.Kind = oneOf(d, "crash", "crash at", "partition", "partition", "none"); f.Kind {
	case "crash":
		f.Hosts = f.Hosts[:1]
	case "crash at":
		f.K, f.Before = 1+d.IntN(40), d.percent(50)
	case "partition":
		f.Way, f.Store, f.For = "both", true, d.between(time.Second, 5*time.Second)
		p.undisturbed(f)
	}
	if f.Kind != "none" {
		faults = append(faults, f)
	}
	p.Faults = append(p.Faults, faults...)
}

// undisturbed takes away what comes between a fault.
func (p *Plan) undisturbed(f Fault) {
	p.Faults = slices.DeleteFunc(p.Faults, func(other Fault) bool {
		return other.At+other.For > f.At-100*time.Millisecond && other.At < f.At+f.For
	})
}

// someone is the client that only reads, or another one, if there is none.
func (p Plan) someone(d dice) string {
	if p.Reader {
		return fmt.Sprintf("client%d", p.Clients)
	}
	return p.client(d)
}

// oldSide draws that a client and the primary lose all others and the store, and their connections,
// for longer than a takeover waits for that client: A + margin, since it has no stream (R12.2).
// What it could still read would be the past.
func (p *Plan) oldSide(d dice) {
	client := p.someone(d)
	f := Fault{At: d.between(50*time.Millisecond, p.Heal-2200*time.Millisecond),
		For: d.between(2200*time.Millisecond, 5*time.Second), Kind: "partition", Hosts: []string{"primary",
			client}, Way: "both", Store: true}
	p.undisturbed(f)
	p.Faults = append(p.Faults, f)
	for i := range p.Replicas - 1 {
		p.Faults = append(p.Faults,
			Fault{At: f.At + time.Microsecond, Kind: "reset", Hosts: []string{client, fmt.Sprintf("backup%d", i)}})
	}
}

// rest is how long a worker rests: a call may only be in flight when a fault begins or ends if
// there are many then.
func (p Plan) rest(d dice, now time.Duration, client, calls int) time.Duration {
	const around, few = 3 * time.Millisecond, 60
	rest := d.between(p.Pause/2, p.Pause*3/2)
	if client == p.Quiet {
		return 10 * rest
	}
	if calls > few*len(p.Faults) {
		return rest
	}
	for _, f := range p.Faults {
		for _, at := range []time.Duration{f.At, f.At + f.For} {
			switch {
			case now > at-around && now < at+2*around:
				return d.between(20*time.Microsecond, 500*time.Microsecond)
			case now < at && now+rest > at-around:
				rest = at - around - now + d.between(0+1, time.Millisecond)
			}
		}
	}
	return rest
}

// fault draws one fault.
func (p Plan) fault(d dice) Fault {
	f := Fault{
		At: d.between(50*time.Millisecond, p.Heal),
		For: oneOf(d, d.between(time.Millisecond, 50*time.Millisecond),
			d.between(50*time.Millisecond, 1500*time.Millisecond), d.between(1500*time.Millisecond, 5*time.Second)),
	}
	backup := fmt.Sprintf("backup%d", d.IntN(p.Replicas-1))
	replica := oneOf(d, "primary", backup)
	if p.Style == Backup {
		p.backupFault(d, &f)
		return f
	}
	anyone := func() string { return replica }
	if p.Style == Anything {
		anyone = func() string { return oneOf(d, replica, p.client(d)) }
	}
	if p.Style == Anything && d.percent(12) { // the primary and a client or two, against the rest
		f.Kind, f.Way, f.Store, f.For = "partition", "both", d.percent(50),
			d.between(500*time.Millisecond, 5*time.Second)
		f.Hosts = []string{"primary", p.client(d)}
		if other := p.client(d); other != f.Hosts[1] && d.percent(30) {
			f.Hosts = append(f.Hosts, other)
		}
		return f
	}
	f.Kind = oneOf(d, "crash", "crash", "crash", "crash at", "crash at", "pause", "pause", "partition", "partition",
		"cut", "cut", "slow", "reset", "reset", "store down", "store cut", "store hold", "client")
	switch f.Kind {
	case "crash":
		f.Hosts, f.For = []string{oneOf(d, "primary", "primary", backup)}, max(f.For, 20*time.Millisecond)
	case "crash at":
		f.Hosts, f.For = p.link(d, "primary"), max(f.For, 20*time.Millisecond)
		f.K, f.Before = 1+d.IntN(40), d.percent(50)
	case "pause":
		f.Hosts = []string{anyone()}
	case "partition":
		f.Way, f.Store = oneOf(d, "both", "both", "out", "in"), d.percent(50)
		f.Hosts = []string{replica}
		if p.Style == Anything { // a side of its own
			for i := range p.Clients {
				if d.percent(40) {
					f.Hosts = append(f.Hosts, fmt.Sprintf("client%d", i))
				}
			}
		}
	case "cut", "reset", "slow":
		f.Hosts, f.Way = p.link(d, anyone()), oneOf(d, "both", "out")
		f.Extra = oneOf(d, d.between(100*time.Microsecond, 5*time.Millisecond),
			d.between(5*time.Millisecond, 300*time.Millisecond))
	case "store cut", "store hold":
		f.Hosts = []string{replica}
	case "client":
		if p.Style == Replicas {
			f.Kind, f.Hosts = "crash", []string{"primary"}
			break
		}
		f.Kind, f.Hosts = oneOf(d, "client crash", "client crash", "client close"), []string{p.client(d)}
	}
	return f
}

func (p Plan) client(d dice) string { return fmt.Sprintf("client%d", d.IntN(p.Clients)) }

// link draws the other end of a link, and the direction.
func (p Plan) link(d dice, end string) []string {
	other := fmt.Sprintf("backup%d", d.IntN(p.Replicas-1))
	switch {
	case p.Style == Anything && !strings.HasPrefix(end, "client") && d.percent(50):
		other = p.client(d)
	case strings.HasPrefix(end, "client"):
		other = oneOf(d, "primary", other)
	case other == end:
		other = "primary"
	}
	if d.percent(50) {
		return []string{other, end}
	}
	return []string{end, other}
}

// backupFault draws a fault of one backup and of its link to the primary.
func (p Plan) backupFault(d dice, f *Fault) {
	f.Kind, f.Hosts, f.Way = oneOf(d, "crash", "cut", "slow", "reset"), []string{"backup0", "primary"},
		oneOf(d, "both", "out")
	f.Extra = d.between(time.Millisecond, 300*time.Millisecond)
	switch {
	case f.Kind == "crash":
		f.Hosts, f.For = f.Hosts[:1], max(f.For, 20*time.Millisecond)
	case d.percent(50):
		slices.Reverse(f.Hosts)
	}
}

// carrier is what carries the header of the clients' calls: the metadata with one seed of four,
// else the message.
func (p Plan) carrier() []transport.Option {
	if p.Seed%4 == 0 {
		return []transport.Option{transport.WithHeaderInMetadata()}
	}
	return nil
}
