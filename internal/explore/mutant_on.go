//go:build mutants

package explore

import "github.com/understudy-rpc/understudy/orderstate"

func without(rule string) bool { return rule == orderstate.Without }

const mutated = true

func deleteSent(s *orderstate.Source) {
	if without("FIG. 8: what is reflected stays") {
		s.DeleteSent()
	}
}
