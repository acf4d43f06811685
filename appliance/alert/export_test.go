package alert

// FindNull is for the fuzz target, which stands outside.
var FindNull = findNull
