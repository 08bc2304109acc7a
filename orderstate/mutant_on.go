//go:build mutants

package orderstate

// Without names the rule that is taken away, in builds for make mutants only.
var Without string

func without(r rule) bool { return string(r) == Without }

// DeleteSent is FIG. 8's deletion as printed: what was sent once leaves pendingRemoteOrder.
func (s *Source) DeleteSent() { s.pendingRemoteOrder.drop(s.pendingRemoteOrder.len()) }
