package simulation

import (
	"math"
	"time"

	"github.com/anishathalye/porcupine"
)

// never is when a call ends whose end nobody knows.
const never = time.Duration(math.MaxInt64)

// Linearizable asks porcupine whether the calls can have taken effect one after the other, each
// between its begin and its end. A call whose outcome is unknown may have any result, and may take
// effect at any later time, or never: so each one forks the search. It knows nothing of the
// replicas.
func Linearizable(p Plan, calls []Call, patience time.Duration) porcupine.CheckResult {
	var history []porcupine.Operation
	for _, c := range calls {
		if c.Request.Read && c.Outcome != Accepted {
			continue // it changes nothing
		}
		op := porcupine.Operation{ClientId: c.Worker, Input: c.Request, Call: int64(c.Began), Return: int64(c.Ended)}
		switch c.Outcome {
		case Accepted:
			op.Output = c.Reply.Result
		case Unknown:
			op.Return = int64(never)
		default:
			continue
		}
		history = append(history, op)
	}
	model := porcupine.Model{
		Init: func() any { return p.opening() },
		Step: func(state, input, output any) (bool, any) {
			next, result := state.(Cells).Apply(input.(Request))
			return output == nil || output == any(result), next
		},
	}
	if p.Workload != "bank" { // cells are independent but in a bank
		model.Partition = byCell
	}
	return porcupine.CheckOperationsTimeout(model, history, patience)
}

func byCell(history []porcupine.Operation) [][]porcupine.Operation {
	cells := make([][]porcupine.Operation, len(Cells{}))
	for _, op := range history {
		c := op.Input.(Request).Cell
		cells[c] = append(cells[c], op)
	}
	return cells
}
