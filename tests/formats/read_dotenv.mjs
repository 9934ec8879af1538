// Reads env files as an application does: for each FILE one line of JSON, the names with their values in base64. The
// first argument is the parser: default or fast.
import process from 'node:process'
import dotenv from 'dotenv'

const fast = process.argv[2] === 'fast'
for (const path of process.argv.slice(3)) {
  const before = new Set(Object.keys(process.env))
  dotenv.config({ path, fast, quiet: true })
  const values = {}
  for (const name of Object.keys(process.env)) {
    if (before.has(name)) continue
    values[name] = Buffer.from(process.env[name]).toString('base64')
    delete process.env[name]
  }
  process.stdout.write(`${JSON.stringify(values)}\n`)
}
