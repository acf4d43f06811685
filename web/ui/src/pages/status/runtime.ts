/** A name of the API as words: reloadConfigSuccess is "Reload config success"; names in capitals stay. */
export function readable(name: string): string {
  if (name === name.toUpperCase()) return name;
  const spaced = name.replace(/([a-z0-9])([A-Z])/g, "$1 $2").replace(/([A-Z]+)([A-Z][a-z])/g, "$1 $2");
  return spaced
    .split(" ")
    .map((w, i) => (w === w.toUpperCase() && w.length > 1 ? w : i === 0 ? w[0]!.toUpperCase() + w.slice(1) : w.toLowerCase()))
    .join(" ");
}
