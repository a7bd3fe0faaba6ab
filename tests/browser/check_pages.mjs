// Checks pages that come as JSON on standard input: [{"name", "html", "policy"}, ...]. Prints what is wrong as a JSON list.
// html-validate: the HTML follows the standard. csp_evaluator: the content security policy has no known bypass.
import { CspEvaluator } from "csp_evaluator";
import { CspParser } from "csp_evaluator/dist/parser.js";
import { HtmlValidate } from "html-validate";

// Names of attributes and the order of rules that the standard leaves open are no concern here.
const validator = new HtmlValidate({ extends: ["html-validate:standard"], rules: { "no-inline-style": "error" } });
const HARMLESS = 60; // csp_evaluator: from here on, findings are hints for old browsers

const found = [];
const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
for (const { name, html, policy } of JSON.parse(Buffer.concat(chunks).toString())) {
  const report = await validator.validateString(html, name);
  for (const result of report.results) {
    for (const message of result.messages) {
      found.push(`${name}:${message.line}: ${message.ruleId}: ${message.message}`);
    }
  }
  for (const finding of new CspEvaluator(new CspParser(policy).csp).evaluate()) {
    if (finding.severity < HARMLESS) found.push(`${name}: ${finding.directive}: ${finding.description}`);
  }
}
console.log(JSON.stringify(found));
