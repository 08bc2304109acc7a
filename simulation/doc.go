// Package simulation runs whole groups under faults that a seed decides, in virtual time, and holds
// what their clients saw against what the library promises: who repeats a seed sees the same faults
// at the same moments.
//
//	make simulate SEEDS=2000     # at the root: many seeds
//	make simulate SEED=17        # one of them again, with its trace
//
// One seed is one Plan: a level, replicas, clients, a workload, and faults (plan.go). A Run
// (run.go) plays it in a testing/synctest bubble: real replicas and clients on real grpc-go, over
// connections in memory (understudytest/simnet), with the election in memory, while the nemesis
// (nemesis.go) makes the faults. What comes of it is judged in check.go and, by porcupine, which
// knows nothing but what the clients saw, in model.go.
//
// The faults stay within what the library promises to survive: one in-sync replica is always left
// alive.
package simulation
