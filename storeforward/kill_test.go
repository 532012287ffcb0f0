package storeforward

const killChildEnv = "HOLDFAST_KILL_CHILD"

func killChild(string) int { return 0 }
