package orderstate

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// budget bounds how much of each there is in one run.
type budget struct{ calls, crashes, elections, evictions, joins, giveUps, expiries int }

// enabled returns the commands that may be given now, always in one order.
func (w *world) enabled(left budget) []string {
	var cs []string
	add := func(format string, args ...any) { cs = append(cs, fmt.Sprintf(format, args...)) }
	for _, link := range sorted(maps.Keys(w.links)) {
		if n := len(w.links[link]); n > 0 {
			add("deliver %s", link)
			add("repeat %s", link)
			add("lose %s", link)
			if n > 1 {
				add("deliver %s last", link)
			}
		}
	}
	for _, name := range sorted(maps.Keys(w.sources)) {
		s := w.sources[name]
		if s.dead || s.told != nil {
			continue
		}
		if left.calls > 0 {
			add("call %s %s%d", name, strings.ToLower(name), len(s.calls)+1)
		}
		for _, r := range sorted(maps.Keys(w.replicas)) {
			add("reconnect %s %s", name, r)
		}
	}
	alive := 0
	for name := range w.inSync {
		if !w.replicas[name].dead {
			alive++
		}
	}
	for _, name := range sorted(maps.Keys(w.replicas)) {
		r := w.replicas[name]
		if r.dead {
			continue
		}
		add("cut %s", name)
		if left.crashes > 0 && (alive > 1 || !w.inSync[name]) {
			add("crash %s", name)
		}
		if left.elections > 0 && w.mayStand(r) {
			add("elect %s", name)
		}
		if r.primary != nil {
			for _, o := range r.owed {
				add("reply %s %s", name, w.names[o.id])
			}
			add("null %s", name)
			add("push %s", name)
			add("gate %s", name)
			if left.expiries > 0 && r.primary.Held() {
				add("expire %s C2", name)
			}
			if w.primary == name && left.joins > 0 {
				for _, donor := range sorted(maps.Keys(w.replicas)) {
					if d := w.replicas[donor]; !d.dead && w.inSync[donor] && d.history().epochs.newest() == w.epoch &&
						(d.primary != nil || d.backup.Started()) {
						add("join S%d %s %s", len(w.replicas)+1, name, donor)
					}
				}
			}
		} else {
			add("ack %s", name)
			if r.takeover == nil {
				add("detach %s C1", name)
				add("attach %s C1", name)
				if w.detached {
					add("attach %s C2", name)
				}
				add("stream %s", name)
			}
			if len(r.backup.Lacks(1)) > 0 {
				add("fetch %s", name)
			}
		}
		if r.takeover != nil {
			add("tell %s", name)
		}
		if r.takeover != nil && r.primary == nil {
			add("fix %s", name)
			_, sessions := r.takeover.Waiting()
			for _, n := range sessions {
				if left.giveUps > 0 {
					add("giveup %s C%d", name, n)
				}
			}
		}
		if w.primary == name && left.evictions > 0 && (r.primary != nil || r.takeover != nil) {
			for _, out := range sorted(maps.Keys(w.inSync)) {
				if out != name {
					add("evict %s %s", name, out)
				}
			}
		}
		if p := w.replicas[w.primary]; r.joining > 0 && !w.inSync[name] && p.primary != nil && !p.dead {
			add("admit %s %s", name, w.primary)
		}
	}
	return cs
}

// weights make what moves calls and takeovers on likelier than what disturbs them.
var weights = map[string]int{"deliver": 12, "call": 8, "reply": 12, "fix": 12, "gate": 8, "ack": 4, "elect": 4,
	"admit": 6, "fetch": 6, "giveup": 3, "crash": 2, "evict": 2}

func choose(commands []string, n int) string {
	weight := func(c string) int { return max(1, weights[c[:strings.Index(c, " ")]]) }
	total := 0
	for _, c := range commands {
		total += weight(c)
	}
	n %= total
	for _, c := range commands {
		if n -= weight(c); n < 0 {
			return c
		}
	}
	panic("unreachable")
}

func (b *budget) spend(command string) {
	for prefix, left := range map[string]*int{"call": &b.calls, "crash": &b.crashes, "elect": &b.elections,
		"evict": &b.evictions, "join": &b.joins, "giveup": &b.giveUps, "expire": &b.expiries} {
		if strings.HasPrefix(command, prefix) {
			*left--
		}
	}
}

// explore drives a group from bytes, then lets what is left of it come to rest. It returns the
// script so far, and what was broken.
func explore(data []byte) (script []string, err error) {
	if len(data) == 0 {
		return nil, nil
	}
	level := []string{"reflected", "direct", "stable"}[data[0]%3]
	most := 0
	if level == "reflected" {
		most = 1 + int(data[0]>>2)%4
	}
	w := newWorld(level, most, []Replica{"S1", "S2", "S3"}, []string{"C1", "C2"}, data[0]&64 != 0)
	script = append(script, "# level="+w.level)
	left := budget{calls: 8, crashes: 2, elections: 3, evictions: 1, joins: 1, giveUps: 1, expiries: 1}
	if data[0]&128 != 0 {
		left.giveUps, left.expiries = 0, 0
	}
	do := func(command string) bool {
		script = append(script, command)
		var said string
		said, err = w.do(command)
		for line := range strings.Lines(said) {
			script = append(script, "    "+strings.TrimSuffix(line, "\n"))
		}
		return err == nil
	}
	for i := 1; i+1 < len(data); i += 2 {
		command := choose(w.enabled(left), int(data[i])<<8|int(data[i+1]))
		left.spend(command)
		if !do(command) {
			return script, err
		}
	}
	stuck := rest(w, do)
	return script, errors.Join(err, stuck)
}

// rest brings the group to rest with no more faults, and checks that it lives: every call of a live
// source is answered, and all replicas hold the same.
func rest(w *world, do func(string) bool) error {
	var unrest error
	for range 40 {
		for _, link := range sorted(maps.Keys(w.links)) {
			for range len(w.links[link]) {
				if !do("deliver " + link) {
					return nil
				}
			}
		}
		if unrest = w.unrest(); unrest == nil {
			return nil
		}
		var commands []string
		add := func(format string, args ...any) { commands = append(commands, fmt.Sprintf(format, args...)) }
		p := w.replicas[w.primary]
		if p.dead || p.takeover != nil && p.primary == nil && p.takeover.Epoch() != w.epoch {
			i := slices.IndexFunc(sorted(maps.Keys(w.inSync)), func(name Replica) bool {
				return w.mayStand(w.replicas[name])
			})
			if i < 0 {
				return nil // the group is down
			}
			add("elect %s", sorted(maps.Keys(w.inSync))[i])
		} else {
			for _, name := range sorted(maps.Keys(w.replicas)) {
				if w.replicas[name].dead {
					add("evict %s %s", p.name, name)
				}
			}
			if p.primary == nil {
				_, sessions := p.takeover.Waiting()
				for _, n := range sessions {
					if s := w.sources[fmt.Sprint("C", n)]; s.dead || s.told != nil {
						add("giveup %s %s", p.name, s.name)
					}
				}
				add("tell %s", p.name)
				add("fix %s", p.name)
			} else {
				if p.takeover != nil {
					add("tell %s", p.name)
				}
				add("gate %s", p.name)
				add("push %s", p.name)
				for _, o := range p.owed {
					add("reply %s %s", p.name, w.names[o.id])
				}
				for _, name := range sorted(maps.Keys(w.replicas)) {
					if r := w.replicas[name]; !r.dead && r.joining > 0 && !w.inSync[name] {
						add("admit %s %s", name, p.name)
					}
				}
			}
		}
		for _, name := range sorted(maps.Keys(w.sources)) {
			if s := w.sources[name]; !s.dead && s.told == nil {
				for r := range w.replicas {
					if !w.replicas[r].dead {
						add("reconnect %s %s", name, r)
					}
				}
			}
		}
		for _, name := range sorted(maps.Keys(w.replicas)) {
			if r := w.replicas[name]; !r.dead && r.primary == nil {
				add("fetch %s", name)
				add("ack %s", name)
			}
		}
		slices.Sort(commands)
		for _, c := range commands {
			if !do(c) {
				return nil
			}
		}
	}
	return fmt.Errorf("for ever: %w", unrest)
}

// unrest says what is still to come.
func (w *world) unrest() error {
	p := w.replicas[w.primary]
	switch {
	case p.dead:
		return fmt.Errorf("%s is dead, and primary", p.name)
	case p.primary == nil:
		peers, sessions := p.takeover.Waiting()
		return fmt.Errorf("%s waits for %v %v", p.name, peers, sessions)
	}
	for _, s := range w.sources {
		for _, c := range s.calls {
			if !c.done && !s.dead && s.told == nil && p.primary.h.Known(s.session) {
				return fmt.Errorf("%s waits for %s", s.name, w.names[c.message.MessageID])
			}
		}
	}
	for name := range w.inSync {
		if r := w.replicas[name]; r.dead || r.history().Last() != p.primary.Last() {
			return fmt.Errorf("%s is at %d of %d", name, r.history().Last(), p.primary.Last())
		}
	}
	return nil
}

func FuzzPrimaryBackups(f *testing.F) {
	random := rand.New(rand.NewPCG(1, 2))
	for level := range 6 {
		data := make([]byte, 160)
		for i := range data {
			data[i] = byte(random.Uint32())
		}
		data[0] = byte(level%3) | byte(level/3)<<7
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		script, err := explore(data[:min(len(data), 300)])
		if err != nil {
			t.Fatalf("%s\n%v", strings.Join(script, "\n"), err)
		}
	})
}

// TestGroupsAgreeWhateverHappens explores as FuzzPrimaryBackups does, from seeds.
func TestGroupsAgreeWhateverHappens(t *testing.T) {
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 0))
		data := make([]byte, 40+random.IntN(260))
		for i := range data {
			data[i] = byte(random.Uint32())
		}
		if script, err := explore(data); err != nil {
			t.Fatalf("seed %d:\n%s\n%v", seed, strings.Join(script, "\n"), err)
		}
	}
}
