package orderstate

import "fmt"

// hearing finds a backup and a source.
func (w *world) hearing(name, whom string) (*replica, *source, error) {
	r, s := w.replicas[Replica(name)], w.sources[whom]
	if r == nil || r.dead || r.backup == nil || r.takeover != nil || s == nil {
		return nil, nil, fmt.Errorf("%w: %s hears %s", errWorld, name, whom)
	}
	return r, s, nil
}

// detach: a backup can't hear a source any more, and tells its primary; the confirmation follows
// all that the source's replies depend on (R11).
func (w *world) detach(name, whom, _ string) error {
	r, s, err := w.hearing(name, whom)
	if err != nil {
		return err
	}
	number, ok := r.backup.Detach(s.session)
	if !ok {
		w.say("%s has nothing to detach", name)
		return nil
	}
	w.tells(r, "detach "+whom, func(p *replica) {
		upTo, ok := p.primary.Detach(r.name, s.session)
		if !ok {
			return
		}
		w.say("%s confirms that %s can't hear %s, after what is ordered up to %d", p.name, name, whom, upTo)
		w.toBackups(p, "push", p.primary.Push(p.primary.Stable()), messages(p.primary.h))
		w.send(string(p.name), name, "confirmation", func() bool {
			if r.backup == nil {
				return true
			}
			r.backup.Confirmed(s.session, number, upTo)
			if r.backup.Detached(s.session) {
				w.say("%s is detached at %s", whom, name)
			}
			return true
		})
	})
	return nil
}

// attach: a backup hears a source, which has sent again what it holds.
func (w *world) attach(name, whom, _ string) error {
	r, s, err := w.hearing(name, whom)
	if err == nil && r.backup.Attach(s.session) {
		w.tells(r, "attach "+whom, func(p *replica) { p.primary.Attach(r.name, s.session) })
	}
	return err
}

// stream: a backup's stream to its primary is a new one: it tells again whom it hears, and whom it
// doesn't any more.
func (w *world) stream(name, _, _ string) error {
	r := w.replicas[Replica(name)]
	if r == nil || r.dead || r.backup == nil || r.takeover != nil {
		return fmt.Errorf("%w: %s has a stream", errWorld, name)
	}
	w.tells(r, "hello", func(p *replica) { p.primary.DetachAll(r.name) })
	for _, n := range r.backup.Attached() {
		again := w.attach
		if r.backup.attached[n].number != 0 {
			again = w.detach
		}
		if err := again(name, fmt.Sprint("C", n), ""); err != nil {
			return err
		}
	}
	return nil
}

// tells sends what the primary takes in order: not after what was told later.
func (w *world) tells(r *replica, label string, deliver func(p *replica)) {
	p := w.replicas[w.primary]
	r.told++
	at, epoch := r.told, r.backup.Epoch()
	w.send(string(r.name), string(p.name), label, func() bool {
		if p.primary == nil || p.primary.Epoch() != epoch || p.heard[r.name] >= at {
			return true
		}
		if p.heard == nil {
			p.heard = map[Replica]int{}
		}
		p.heard[r.name] = at
		deliver(p)
		return true
	})
}

// attachAll: a backup hears every source, and its primary knows.
func (w *world) attachAll(r *replica) {
	if w.detached {
		return
	}
	p := w.replicas[w.primary]
	for _, s := range w.sources {
		if r.backup.Attach(s.session) && p.primary != nil && p.primary.Epoch() == r.backup.Epoch() {
			p.primary.Attach(r.name, s.session)
		}
	}
}

func messages(h *History) []Message {
	var list []Message
	for _, m := range h.messages.held {
		list = append(list, m)
	}
	return list
}
