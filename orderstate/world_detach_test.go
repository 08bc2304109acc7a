package orderstate

import "fmt"

// detach: a backup can't hear a source, and tells its primary; the confirmation follows all that the source's replies depend on (R11).
func (w *world) detach(name, whom, _ string) error {
	r, s := w.replicas[Replica(name)], w.sources[whom]
	if r == nil || r.dead || r.backup == nil || r.takeover != nil || s == nil {
		return fmt.Errorf("%w: %s detaches %s", errWorld, name, whom)
	}
	number, ok := r.backup.Detach(s.session)
	if !ok {
		w.say("%s can't ask", name)
		return nil
	}
	w.toPrimary(r, "detach "+whom, func(p *replica) {
		upTo, ok := p.primary.Detach(r.name, s.session, number)
		if !ok {
			return
		}
		w.say("%s confirms that %s can't hear %s, after what is ordered up to %d", p.name, name, whom, upTo)
		w.toBackups(p, "push", p.primary.Push(p.primary.Stable()), messages(p.primary.History))
		epoch := p.primary.Epoch()
		w.send(string(p.name), name, "confirmation", func() bool {
			r.backup.Confirmed(epoch, s.session, number, upTo)
			if r.backup.Detached(s.session) {
				w.say("%s is detached at %s", whom, name)
			}
			return true
		})
	})
	return nil
}

// attach: a backup hears a source again, which has sent again what it holds.
func (w *world) attach(name, whom, _ string) error {
	r, s := w.replicas[Replica(name)], w.sources[whom]
	if r == nil || r.dead || r.backup == nil || r.takeover != nil || s == nil {
		return fmt.Errorf("%w: %s attaches %s", errWorld, name, whom)
	}
	if number, ok := r.backup.Attach(s.session); ok {
		w.toPrimary(r, "attach "+whom, func(p *replica) { p.primary.Attach(r.name, s.session, number) })
	}
	return nil
}

func (w *world) toPrimary(r *replica, label string, deliver func(p *replica)) {
	p := w.replicas[w.primary]
	w.send(string(r.name), string(p.name), label, func() bool {
		if p.primary != nil {
			deliver(p)
		}
		return true
	})
}

func messages(h *History) []Message {
	var list []Message
	for _, m := range h.messages {
		list = append(list, m)
	}
	return list
}
