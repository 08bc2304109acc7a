//go:build mutants

package explore

import "github.com/understudy-rpc/understudy/orderstate"

func without(r rule) bool { return string(r) == orderstate.Without }

const mutated = true

func deleteSent(s *orderstate.Source) { s.DeleteSent() }
