//go:build !mutants

package explore

import "github.com/understudy-rpc/understudy/orderstate"

// without says whether a rule is taken away (make mutants). It is not.
func without(rule) bool { return false }

// mutated says that some rule is taken away, so that what shows it is to be found, not what stands
// in the way of it.
const mutated = false

func deleteSent(*orderstate.Source) {}
