// Package counter is the messages and the service that the bench measures with, generated from
// counter.proto. Nothing in it knows of replication.
package counter

// buf finds its template and its module in the folder above.
//go:generate sh -c "cd .. && go tool -modfile=../tools/buf/go.mod buf generate"
