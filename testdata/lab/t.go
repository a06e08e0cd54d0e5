package lab

// T is what the helpers here need of a *testing.T or *testing.B. The demo, which is no test, has one of its own.
type T interface {
	Helper()
	Cleanup(func())
	Failed() bool
	Error(args ...any)
	Errorf(format string, args ...any)
	Fatal(args ...any) // does not return
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
}
