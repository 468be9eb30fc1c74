// node run.mjs BASE: runs the public tests against the cache at BASE; prints a line for each: kind, id, "pass" or what went wrong.
import fetch from 'node-fetch'
import { runTests, getResults } from 'http-cache-tests/client/runner.mjs'
import suites from 'http-cache-tests/tests/index.mjs'

await runTests(suites, fetch, false, process.argv[2])
const results = getResults()
for (const test of suites.flatMap(suite => suite.tests)) {
  if (test.browser_only) continue
  const result = results[test.id]
  const said = result === true ? 'pass' : String(result && result[1]).replace(/\s+/g, ' ')
  console.log(`${test.kind || 'required'} ${test.id} ${said}`)
}
