package port

// Find returns the path of the device file that the options select now, without
// opening it. The error is [ErrUnplugged] when there is none.
func (o Options) Find() (string, error) { return o.resolve() }
